"""What the encoder looks at, as eval's selectors are told, against transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from halfv_edge.engine.images import Picture
from halfv_edge.engine.model import Model
from halfv_edge.measure.encoder_attention import EncoderAttention
from tests.support import hf_reference
from tests.support.converted import convert_tiny
from tests.support.hf_reference import like_ggml
from tests.support.holes import QWEN


@torch.no_grad()
def looked_at(model: Any, family: str, picture: np.ndarray) -> np.ndarray:
    """By token, row by row: what the last layer of the encoder gives each, mean over heads and patches."""
    patches, grid = hf_reference.qwen_patches(picture, QWEN[family])
    visual = model.model.visual if hasattr(model.model, "visual") else model.visual
    attention, found = visual.blocks[-1].attn, []
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    former = attention.forward

    def forward(hidden_states: torch.Tensor, *args: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        q, k, _ = attention.qkv(hidden_states).reshape(len(hidden_states), 3, attention.num_heads, -1).unbind(1)
        q, k = rotate(q, k, *position_embeddings)
        weights = (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        found.append(weights.mean((0, 1)).reshape(-1, 4).mean(1))
        return former(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)

    attention.forward = forward
    try:
        visual(patches, grid)
    finally:
        attention.forward = former
    rows, columns = (int(n) // 2 for n in grid[0][1:])
    order = [(y, x) for y in range(rows) for x in range(columns)]
    if family == "qwen2_5_vl":  # window by window
        side = model.config.vision_config.window_size // QWEN[family] // 2
        order.sort(key=lambda place: (place[0] // side, place[1] // side))
    by_place = dict(zip(order, found[0].tolist(), strict=True))
    return np.array([by_place[y, x] for y in range(rows) for x in range(columns)])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_attention_inside_the_encoder(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    pair = convert_tiny(family, root=tmp_path_factory.getbasetemp())
    side = 2 * QWEN[family]
    pictures = [hf_reference.random_picture(10 * side, 6 * side, seed) for seed in (1, 2)]
    with Model.load(Path(pair.text), Path(pair.vision)) as model:
        watched = EncoderAttention(model.runtime)
        try:
            seen = [watched.received(Picture("", Image.fromarray(picture))) for picture in (*pictures, pictures[0])]
        finally:
            watched.close()
    with like_ggml():
        for found, picture in zip(seen, (*pictures, pictures[0]), strict=True):
            expected = looked_at(pair.model, family, picture)
            assert found.sum() == pytest.approx(0.25, rel=1e-3)  # of all four patches of a token 1
            np.testing.assert_allclose(found, expected, rtol=0.02)
            assert np.corrcoef(found, expected)[0, 1] > 0.99

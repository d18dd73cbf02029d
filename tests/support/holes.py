"""Patches that stay out of the encoder or of the language model: what transformers makes of it.

The reference computes with all patches and all visual tokens, and forbids every look at those that stay out.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tests.support import hf_reference
from tests.support.drawn import page, screen
from tests.support.mtmd_prompt import PromptRun

QWEN = hf_reference.QWEN


def noise(width: int, height: int, side: int) -> np.ndarray:
    return hf_reference.random_picture(width, height)


PICTURES = {"page": page, "screen": screen, "noise": noise}


@torch.no_grad()
def llava_logits(model: Any, seen: PromptRun, picture: np.ndarray, kept: list[int], n_rows: int) -> np.ndarray:
    """Of the last token, where the language model sees some of the rows, at their own places in the prompt."""
    ids: list[int] = []
    sees: list[int] = []
    for piece in seen.pieces:
        is_text = isinstance(piece, list)
        ids += piece if is_text else [model.config.image_token_index] * n_rows
        sees += [1] * len(piece) if is_text else [int(i in set(kept)) for i in range(n_rows)]
    pixels = hf_reference.normalised(picture, hf_reference.CLIP_MEAN, hf_reference.CLIP_STD)[None]
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([sees])}
    return model(**given, pixel_values=pixels, position_ids=torch.arange(len(ids))[None]).logits[0, -1].numpy()


@torch.no_grad()
def logits(
    family: str, model: Any, seen: PromptRun, picture: np.ndarray, entered: list[int], encoder_sees_all: bool = False
) -> np.ndarray:
    """Of the last token, for the prompt that llama.cpp saw."""
    patches, grid = hf_reference.qwen_patches(picture, QWEN[family])
    _, rows, columns = (int(n) for n in grid[0])
    rows, columns = rows // 2, columns // 2
    ids: list[int] = []
    positions: list[tuple[int, int, int]] = []
    sees: list[int] = []
    at = 0
    for piece in seen.pieces:
        if isinstance(piece, list):
            ids += piece
            positions += [(at + i,) * 3 for i in range(len(piece))]
            sees += [1] * len(piece)
            at += len(piece)
        else:
            assert len(piece) == len(entered)
            ids += [model.config.image_token_id] * (rows * columns)
            positions += [(at, at + y, at + x) for y in range(rows) for x in range(columns)]
            sees += [int(i in set(entered)) for i in range(rows * columns)]
            at += max(rows, columns)
    given = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": patches,
        "image_grid_thw": grid,
        "position_ids": torch.tensor(positions).T[:, None],
        "attention_mask": torch.tensor([sees]),
    }
    with contextlib.nullcontext() if encoder_sees_all else _blind_to(family, model, rows, columns, entered):
        return model(**given).logits[0, -1].numpy()


@contextlib.contextmanager
def _blind_to(family: str, model: Any, rows: int, columns: int, entered: list[int]) -> Iterator[None]:
    """No patch in the vision encoder attends to one that stays out."""
    order = [(y, x) for y in range(rows) for x in range(columns)]
    if family == "qwen2_5_vl":  # window by window
        side = model.config.vision_config.window_size // QWEN[family] // 2
        order.sort(key=lambda place: (place[0] // side, place[1] // side))
    inside = torch.tensor([y * columns + x in set(entered) for y, x in order]).repeat_interleave(4)
    blocks = (model.model.visual if hasattr(model.model, "visual") else model.visual).blocks
    former = [block.attn.forward for block in blocks]
    for block in blocks:
        block.attn.forward = masked(block.attn, inside)
    try:
        yield
    finally:
        for block, forward in zip(blocks, former, strict=True):
            block.attn.forward = forward


def masked(attention: Any, inside: torch.Tensor) -> Any:
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision

    def forward(hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: Any, **_: Any) -> Any:
        n = len(hidden_states)
        q, k, v = attention.qkv(hidden_states).reshape(n, 3, attention.num_heads, -1).permute(1, 0, 2, 3)
        q, k = rotate(q, k, *position_embeddings)
        part = torch.bucketize(torch.arange(n), cu_seqlens, right=True)
        # those that stay out may look: a row without anything to see would be no number
        allowed = (part[:, None] == part) & (inside | ~inside[:, None])
        scores = torch.einsum("qhd,khd->hqk", q, k) * attention.head_dim**-0.5
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        return attention.proj(torch.einsum("hqk,khd->qhd", weights, v).reshape(n, -1))

    return forward

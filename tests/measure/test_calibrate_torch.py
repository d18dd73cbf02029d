"""The native taps on a converted checkpoint, and torch on the checkpoint itself: the same curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from halfv_convert import taps

from halfv_edge.engine.context import Item
from halfv_edge.engine.images import load
from halfv_edge.engine.model import Model
from halfv_edge.measure.calibrate.taps import Probe, n_tokens
from tests.support import hf_reference
from tests.support.converted import convert_tiny
from tests.support.hf_reference import SIZES, like_ggml, random_picture
from tests.support.mtmd_prompt import PromptRun

# Measured: up to 3e-5 nats, and 2.5e-4 of a divergence.
ENTROPY, RELATIVE_KL = 2e-4, 2e-3


def as_seen(items: list[Item]) -> PromptRun:
    """The prompt in the form that the reference takes."""
    pieces: list[Any] = []
    for item in items:
        if not isinstance(item, int):
            pieces.append(item.embd)
        elif pieces and isinstance(pieces[-1], list):
            pieces[-1].append(item)
        else:
            pieces.append([item])
    return PromptRun(pieces, np.zeros(0), 0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "glm4v"])
def test_curves_of_a_checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    pair = convert_tiny(family, tmp_path_factory.getbasetemp())
    picture = random_picture(*SIZES[family])
    options = {
        "n_ctx": 1024,
        "n_threads": 1,
        "flash_attn": False,
        "kv_type": "f32",
        "profile": "off",
        "mmproj_type": "off",
    }
    with Model.load(pair.text, pair.vision, **options) as model:
        probe = Probe(model)
        items = probe.items(load(picture), "what is in the picture?")
        ours = probe.observe(items, freeze=True)
        probe.close()
    seen = as_seen(items)
    token = getattr(pair.model.config, "image_token_id", None) or pair.model.config.image_token_index
    is_visual = torch.tensor(seen.ids(token)) == token
    with like_ggml(family):
        theirs = taps.observe(
            pair.model,
            lambda: torch.from_numpy(hf_reference.logits(family, pair, seen, picture)),
            is_visual,
            freeze=True,
        )
    assert (ours.n_visual, ours.n_text) == (theirs.n_visual, theirs.n_text)
    assert ours.n_visual == n_tokens(items)[1]
    for name in ("visual", "text", "all"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=ENTROPY)
        assert np.ptp(getattr(theirs, name)) > 20 * ENTROPY  # or a flat line would pass
    np.testing.assert_allclose(ours.layer_kl, theirs.layer_kl, rtol=RELATIVE_KL, atol=1e-6)

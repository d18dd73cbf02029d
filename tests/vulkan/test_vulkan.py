"""Vulkan, all layers offloaded, computes what the CPU computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfv_edge.testing.client import LOG, Client, log_text
from tests.support.tiny_models import grid_positions, make_tiny, tiny_image

MAX_NMSE = 1e-4  # upstream's bound for whole models on another device (tests/test-llama-archs.cpp)
N_DECODED = 16
N_LAYER = 6
ROWS, COLS = 6, 8

PLAIN: dict[str, Any] = {}
FLASH: dict[str, Any] = {"flash_attn": True, "type_k": "f16", "type_v": "f16"}

# qwen3vl is left out: on Mesa 22.3's lavapipe the unpatched pin, too, corrupts the heap in it.
ARCHS = ("llama", "qwen2", "qwen3", "qwen2vl")


def answer(model: Path, tokens: Sequence[int] = (), **options: Any) -> np.ndarray:
    """Logits after the question and after each decoded token: those given, or else the greedy ones."""
    # The image is longer than a micro-batch, so its graph is built more than once.
    with Client(model, n_ctx=256, n_batch=64, n_ubatch=32, **options) as client:
        client.text([1, 40, 41, 42, 43], logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        client.text([50, 51, 52, 53, 54, 55])
        logits = [client.logits()]
        for step in range(N_DECODED):
            logits.append(client.decode(int(tokens[step] if len(tokens) else logits[-1].argmax())))
    return np.stack(logits)


def nmse(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return ((actual - expected) ** 2).sum(axis=-1) / (expected**2).sum(axis=-1)


@pytest.mark.usefixtures("vulkan_lib_dir")
@pytest.mark.parametrize("options", [PLAIN, FLASH], ids=["f32", "flash-f16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_same_as_cpu(
    arch: str, options: dict[str, Any], on_cpu: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    model = make_tiny(tmp_path / "model.gguf", arch, n_layer=N_LAYER)
    with on_cpu():
        LOG.clear()
        expected = answer(model, **options)
        assert "Vulkan0" not in log_text()
    LOG.clear()
    actual = answer(model, n_gpu_layers=99, **options)
    log = log_text()

    assert f"offloaded {N_LAYER + 1}/{N_LAYER + 1} layers to GPU" in log
    # Only the lookup of the input rows stays on the host: every other op ran on Vulkan.
    assert {int(count) for count in re.findall(r"splits = (\d+)", log)} <= {1, 2}, log

    assert np.isfinite(expected).all() and (expected.std(axis=1) > 0.1).all()
    assert actual.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    assert nmse(actual, expected).max() <= MAX_NMSE

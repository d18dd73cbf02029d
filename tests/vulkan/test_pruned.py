"""A pruned prompt on Vulkan: the same tokens kept as on the CPU, the same answer. The Gram matrix is the device's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.tiny_models import grid_positions, make_tiny, tiny_image
from tests.vulkan.test_vulkan import ARCHS, FLASH, MAX_NMSE, PLAIN, nmse

ROWS, COLS = 10, 12
PROFILES = {
    "freeze": {"ssr.update": 0.0, "ssr.rest": "frozen"},
    "drop": {"ssr.update": 0.1, "ssr.rest": "dropped"},
}
BOTH = {"ivr.layer": 2, "ivr.keep": 0.5, "ivr.anchors": 0.2, "ssr.layer": 4}


def answer(model: Path, prepared: bool, **options: Any) -> tuple[list[int], list[int], np.ndarray]:
    with Client(model, n_ctx=256, n_ubatch=64, **options) as client:
        client.text([1, 40, 41, 42], logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        if prepared:
            assert pruned.prepare(client) == pruned.OK
        client.text([50, 51, 52, 53, 54])
        logits = [client.logits(), client.decode(60), client.decode(61)]
        return pruned.kept(client), pruned.kept(client, stage=3), np.stack(logits)


@pytest.mark.usefixtures("vulkan_lib_dir")
@pytest.mark.parametrize("n_gpu_layers", [99, 3], ids=["all", "partly"])
@pytest.mark.parametrize("mode", PROFILES)
@pytest.mark.parametrize("arch", ARCHS)
def test_same_choice_and_answer(
    arch: str, mode: str, n_gpu_layers: int, on_cpu: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    seed = 1 if arch == "qwen2vl" else 0  # seed 0 has two tokens too close to call between two devices
    model = make_tiny(tmp_path / "model.gguf", arch, seed=seed, profile=BOTH | PROFILES[mode])
    prepared = n_gpu_layers == 99 and arch == "qwen2vl"
    options = FLASH if n_gpu_layers == 99 and arch == "llama" else PLAIN
    with on_cpu():
        kept, deep, expected = answer(model, prepared, **options)
    kept_there, deep_there, actual = answer(model, prepared, n_gpu_layers=n_gpu_layers, **options)
    assert (kept_there, deep_there) == (kept, deep)
    assert nmse(actual, expected).max() <= MAX_NMSE

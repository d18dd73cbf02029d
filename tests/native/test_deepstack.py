"""Layers that add more of a picture's input than its embedding, in any stage: that goes along with the states."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import library

from halfv_edge.testing.client import Client
from tests.support import deepstack, pruned
from tests.support.architectures import COLS, MODES, QUESTION, ROWS, WHOLE, masking_of, on_a_device, tell, told

# how many times the width of a state, where stage II begins
CARRIED = {"qwen3vl-stage1": 0, "qwen3vl-stage2": 1, "qwen3vl-stage3": 3, "qwen3vlmoe-stage2": 1, "granite": 2}


@pytest.fixture(scope="module")
def program(build_dir: Path) -> Path:
    return build_dir / "bin" / "save-archs"


@pytest.mark.parametrize("kind", deepstack.KINDS)
def test_whole_and_pruned(kind: str, program: Path, tmp_path: Path) -> None:
    """Whole through three stages is stock's to the bit; pruned is stock with the same tokens masked."""
    path = deepstack.save(program, kind, tmp_path)
    stock, _ = told(path)
    whole, kept = told(path, WHOLE)
    assert [len(chosen) for chosen in kept] == [ROWS * COLS] * 2
    assert whole.tobytes() == stock.tobytes()
    for profile in MODES.values():
        logits, (kept, deep) = told(path, profile)
        expected, _ = told(path, None, masking_of(profile, kept, deep))
        error = np.abs(logits - expected).max()
        assert error < 5e-6 * np.abs(stock).max()
        assert error * 100 < np.abs(logits - stock).max()  # or nothing would be tested


@pytest.mark.parametrize("kind", deepstack.KINDS)
def test_only_what_later_layers_read_goes_along(kind: str, program: Path, tmp_path: Path) -> None:
    path = deepstack.save(program, kind, tmp_path)
    with Client(path, n_ctx=256, on_model=lambda model: pruned.set_profile(model, MODES["top"])) as client:
        tell(client)
        _, used = pruned.undo_bytes(client)
        llama, model = library.open_library("llama"), ctypes.c_void_p(client.model)
        n_key = llama.llama_model_n_head_kv(model) * client.n_embd // llama.llama_model_n_head(model)
        n_rows = ROWS * COLS + len(QUESTION)
        assert used == 4 * (n_rows * client.n_embd * (1 + CARRIED[kind]) + ROWS * COLS * n_key)


@pytest.mark.parametrize("kind", deepstack.KINDS)
def test_on_a_device_as_on_the_host(kind: str, program: Path, build_dir: Path, tmp_path: Path) -> None:
    for name, here in on_a_device(build_dir, deepstack.save(program, kind, tmp_path)).items():
        assert here["same_kept"] and here["same_logits"], name
        assert here["down"]["device"] < here["down"]["host"] or name.startswith("states"), name

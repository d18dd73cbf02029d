"""Who decides where a GPU keeps other tokens than the CPU: the states that it computed, or how it chooses among them.

A prompt that waits is saved on one of them and settled on the other. Of the same states, both choose the same tokens.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from halfv_cpp import library, llama_h

from halfv_edge.testing.client import Client
from tests.gpu.test_pruned import BOTH, COLS, PROFILES, ROWS
from tests.support import pruned
from tests.support.agreement import Record
from tests.support.talks import OPTIONS, SIZES
from tests.support.tiny_models import ARCHS, grid_positions, make_tiny, tiny_image

QUESTION = [50, 51, 52, 53, 54]
GPU, CPU = 99, 0


def waiting(model: Path, **options: Any) -> ctypes.Array:
    """A picture and its question, as they wait."""
    with Client(model, n_ctx=256, n_ubatch=64, **options) as client:
        client.text([1, 40, 41, 42], logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        client.text(QUESTION, logits_last=False)
        state = (ctypes.c_uint8 * llama_h.llama_state_seq_get_size(client.ctx, 0))()
        assert llama_h.llama_state_seq_get_data(client.ctx, state, len(state), 0) == len(state)
        return state


def settled(model: Path, state: ctypes.Array, **options: Any) -> list[int]:
    """The tokens kept once they no longer wait: a control vector is about to be set, so that they go on as they are."""
    with Client(model, n_ctx=256, n_ubatch=64, **options) as client:
        assert llama_h.llama_state_seq_set_data(client.ctx, state, len(state), 0) == len(state)
        assert pruned.stats(client).n_pending >= ROWS * COLS
        vector = np.zeros((llama_h.llama_model_n_layer(client.model) - 1, client.n_embd), np.float32)
        data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        args = (ctypes.c_void_p(client.ctx), data, ctypes.c_size_t(vector.size), client.n_embd, 1, len(vector))
        assert library.open_library("llama").llama_set_adapter_cvec(*args) == 0
        return pruned.kept(client)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("numbers", OPTIONS)
@pytest.mark.parametrize("arch", ARCHS)
def test_of_the_same_states(
    arch: str,
    numbers: str,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
    tmp_path: Path,
) -> None:
    model = make_tiny(tmp_path / "model.gguf", arch, profile=BOTH | PROFILES["drop"], **SIZES)
    on: dict[int, Callable[[], AbstractContextManager[None]]] = {CPU: on_cpu, GPU: contextlib.nullcontext}
    states, kept = {}, {}
    for computes in (CPU, GPU):
        with on[computes]():
            states[computes] = waiting(model, n_gpu_layers=computes, **OPTIONS[numbers])
    for computes in (CPU, GPU):
        for chooses in (CPU, GPU):
            with on[chooses]():
                kept[computes, chooses] = set(
                    settled(model, states[computes], n_gpu_layers=chooses, **OPTIONS[numbers])
                )
            assert 0 < len(kept[computes, chooses]) < ROWS * COLS
    record_property("decided", len(kept[CPU, CPU]))
    record_property("others_by_states", len(kept[GPU, CPU] - kept[CPU, CPU]))
    record_property("others_by_choice", max(len(kept[one, GPU] - kept[one, CPU]) for one in (CPU, GPU)))
    assert kept[CPU, GPU] == kept[CPU, CPU] and kept[GPU, GPU] == kept[GPU, CPU]

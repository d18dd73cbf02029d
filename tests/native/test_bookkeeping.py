"""What callers are told: llama_perf's counts, and whether there was anything to prepare."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import library

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.tiny_models import DROP, make_tiny

N_VISUAL = 64
PREFIX = [11, 12, 13, 14]


class Perf(ctypes.Structure):
    """struct llama_perf_context_data"""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("t_start_ms", "t_load_ms", "t_p_eval_ms", "t_eval_ms")),
        *((name, ctypes.c_int32) for name in ("n_p_eval", "n_eval", "n_reused")),
    )


def perf(client: Client) -> Perf:
    function = library.open_library("llama").llama_perf_context
    function.restype = Perf
    return function(ctypes.c_void_p(client.ctx))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(make_tiny(tmp_path / "model.gguf", "llama", profile=DROP)) as made:
        made.text(PREFIX, logits_last=False)
        made.image(np.random.default_rng(0).standard_normal((N_VISUAL, made.n_embd_inp)).astype(np.float32))
        yield made


def test_a_single_token_that_settles_a_picture_is_prompt(client):
    client.text([21], logits_last=False)  # waits alone
    library.open_library("llama").llama_synchronize(ctypes.c_void_p(client.ctx))
    client.decode(22)
    n_prompt = len(PREFIX) + N_VISUAL + 2
    assert perf(client).n_p_eval == n_prompt
    for token in (23, 24):
        client.decode(token)
    assert (perf(client).n_p_eval, perf(client).n_eval) == (n_prompt, 2)


def test_preparing_again_finds_nothing(client):
    assert pruned.prepare(client) == pruned.OK
    before = bytes(pruned.stats(client))
    assert pruned.prepare(client) == pruned.NOTHING
    assert bytes(pruned.stats(client)) == before
    client.text([21, 22], logits_last=False)
    assert pruned.prepare(client) == pruned.OK
    assert pruned.prepare(client) == pruned.NOTHING

"""Masks that are written for one sequence at once are llama.cpp's own, whatever lies between a sequence's cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.architectures import WHOLE
from tests.support.tiny_models import grid_positions, make_tiny, tiny_image

ROWS, COLS = 6, 8


def show(client: Client, seq: int) -> None:
    pos = grid_positions(client.next_pos[seq], ROWS, COLS) if client.is_mrope else None
    client.image(tiny_image(ROWS * COLS, client.n_embd_inp, seed=seq), pos, seq=seq)


def played(client: Client) -> np.ndarray:
    """Pictures and text of two sequences in turn; text that goes leaves empty cells, which others fill."""
    logits = []
    for seq in (0, 1):
        client.text([1, 5 + seq, 6, 7, 8, 9], logits_last=False, seq=seq)
    assert llama_h.llama_memory_seq_rm(client.memory, 0, 2, -1)
    client.next_pos[0] = 2
    for seq in (1, 0):
        show(client, seq)
        client.text([20, 21, 22, 23], seq=seq)
        logits.append(client.logits())
    start = client.next_pos[1] - 3
    assert llama_h.llama_memory_seq_rm(client.memory, 1, start, -1)
    client.next_pos[1] = start
    for seq in (0, 1, 0):
        client.text(range(30, 49), seq=seq)  # more than a micro-batch, in cells of both
        logits.append(client.logits())
    show(client, 0)
    client.text([50, 51], seq=0)
    logits.append(client.logits())
    return np.stack(logits)


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_as_without_stages(arch: str, unified: bool, flash: bool, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model.gguf", arch)
    options = {"n_ctx": 512, "n_ubatch": 16, "n_seq_max": 2, "kv_unified": unified, "flash_attn": flash}
    with Client(model, **options) as client:
        expected = played(client)
    with Client(model, on_model=lambda loaded: pruned.set_profile(loaded, WHOLE), **options) as client:
        actual = played(client)
        assert pruned.stats(client).n_images == 2
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)

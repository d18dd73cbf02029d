"""What a context's memory holds on a GPU is what it holds on the CPU: sequences, waiting pictures, states, removals."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.gpu.test_pruned import BOTH, PROFILES
from tests.gpu.test_unpruned import OPTIONS, SIZES
from tests.support import pruned
from tests.support.agreement import Answers, Record, assert_agree
from tests.support.tiny_models import ARCHS, grid_positions, make_tiny, tiny_image

ROWS, COLS = 9, 12
FIRST, SECOND = [21, 22, 23, 24, 25], [43, 44, 45]
ENOUGH = 1 << 28  # bytes, for what undoing a question takes


class Talk:
    """Sequences of one context, each with a picture of its own, and what they answer."""

    def __init__(self, client: Client):
        self.client = client
        self.answers = Answers()

    def show(self, seq: int = 0) -> None:
        """Text and a picture, which then waits."""
        client = self.client
        client.text([1, 40 + seq, 41, 42], logits_last=False, seq=seq)
        pos = grid_positions(client.next_pos[seq], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp, seed=seq), pos, seq=seq)
        assert pruned.stats(client, seq).n_pending >= ROWS * COLS

    def ask(self, question: list[int], seq: int = 0) -> None:
        self.client.text(question, seq=seq)
        self.answers.logits.append(self.client.logits())
        self.answers.kept += [pruned.kept(self.client, stage=stage, seq=seq) for stage in (2, 3)]

    def go_on(self, *seqs: int) -> None:
        """A token of each, in one batch."""
        client = self.client
        client.batch(
            [60 + seq for seq in seqs], np.array([client.next_pos[seq] for seq in seqs]), seqs, [True] * len(seqs)
        )
        for row, seq in enumerate(seqs):
            client.next_pos[seq] += 1
            self.answers.logits.append(client.logits(row))

    def saved(self) -> tuple[ctypes.Array, int]:
        ctx = self.client.ctx
        state = (ctypes.c_uint8 * llama_h.llama_state_seq_get_size(ctx, 0))()
        assert llama_h.llama_state_seq_get_data(ctx, state, len(state), 0) == len(state)
        return state, self.client.next_pos[0]

    def restore(self, saved: tuple[ctypes.Array, int], seq: int) -> None:
        state, self.client.next_pos[seq] = saved
        assert llama_h.llama_state_seq_set_data(self.client.ctx, state, len(state), seq) == len(state)


def one_waits(talk: Talk) -> None:
    """A picture waits while two other sequences go on."""
    talk.show(0)
    talk.ask(FIRST, 0)
    talk.show(1)
    talk.client.text(FIRST, logits_last=False, seq=2)
    talk.go_on(0, 2)
    talk.go_on(2, 0)
    talk.ask(SECOND, 1)
    talk.go_on(0, 1, 2)


def states(talk: Talk) -> None:
    """A waiting picture and an answered one are saved, and go on elsewhere."""
    talk.show()
    waiting = talk.saved()
    talk.ask(FIRST)
    answered = talk.saved()
    talk.restore(waiting, 1)
    talk.ask(SECOND, 1)
    talk.restore(answered, 2)
    talk.go_on(0, 1, 2)


def removed_question(talk: Talk) -> None:
    talk.show()
    start = talk.client.next_pos[0]
    talk.ask(FIRST)
    talk.go_on(0)
    assert llama_h.llama_memory_seq_rm(talk.client.memory, 0, start, -1)
    talk.client.next_pos[0] = start
    talk.ask(SECOND)
    talk.go_on(0)


def later_questions(talk: Talk) -> None:
    """A prepared picture, its question, and a second one that brings tokens back."""
    talk.show()
    assert pruned.prepare(talk.client) == pruned.OK
    talk.ask(FIRST)
    talk.go_on(0)
    assert pruned.topup(talk.client) == pruned.OK
    talk.ask(SECOND)
    talk.go_on(0)


def answers(model: Path, tell: Callable[[Talk], None], **options: Any) -> Answers:
    with Client(model, n_ctx=1024, n_ubatch=64, n_seq_max=3, **options) as client:
        pruned.set_undo_bytes(client, ENOUGH)
        talk = Talk(client)
        tell(talk)
        return talk.answers


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("mode", "unified", "numbers"), [("freeze", True, "f32"), ("drop", False, "flash-f16")])
@pytest.mark.parametrize("tell", [one_waits, states, removed_question, later_questions])
@pytest.mark.parametrize("arch", ARCHS)
def test_same_as_cpu(
    arch: str,
    tell: Callable[[Talk], None],
    mode: str,
    unified: bool,
    numbers: str,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
    tmp_path: Path,
) -> None:
    model = make_tiny(tmp_path / "model.gguf", arch, seed=1, profile=BOTH | PROFILES[mode], **SIZES)
    options = OPTIONS[numbers] | {"kv_unified": unified}
    with on_cpu():
        expected = answers(model, tell, **options)
    actual = answers(model, tell, n_gpu_layers=99, **options)
    assert_agree(record_property, actual, expected)

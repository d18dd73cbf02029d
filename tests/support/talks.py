"""What is told to a context on a device and to one on the CPU, to compare their answers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.agreement import Answers
from tests.support.tiny_models import grid_positions, tiny_image

# heads of 64, the narrowest that CUDA's flash attention takes besides 40
SIZES = {"n_embd": 256, "n_head": 4, "n_head_kv": 2, "n_ff": 256}
OPTIONS: dict[str, dict[str, Any]] = {
    "f32": {},
    "flash-f16": {"flash_attn": True, "type_k": "f16", "type_v": "f16"},
}

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


TALKS = [one_waits, states, removed_question, later_questions]


def answers(model: Path, tell: Callable[[Talk], None], **options: Any) -> Answers:
    with Client(model, n_ctx=1024, n_ubatch=64, n_seq_max=3, **options) as client:
        pruned.set_undo_bytes(client, ENOUGH)
        talk = Talk(client)
        tell(talk)
        return talk.answers

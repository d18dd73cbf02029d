"""Plays a script on one context and compares every answer with that of the sequence alone."""

from __future__ import annotations

import contextlib
import ctypes
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from halfv_edge.testing.client import DecodeError
from tests.support import pruned

from .history import Adapted, History, Picture, Prepared, Row, ToppedUp
from .script import Script
from .teller import Alone, Model, Teller

TOLERANCE = 1e-4
N_TOKENS = 250  # ids above it are not text


class DisagreementError(AssertionError):
    """The context and the sequence alone disagree."""


@dataclass
class Piece:
    """Something that a sequence still has to say."""

    values: list[int] | Picture
    asks: bool = False
    announced: bool = False
    said: int = 0
    start: int = 0  # position, once a picture has begun

    def __len__(self) -> int:
        return self.values.rows * self.values.cols if isinstance(self.values, Picture) else len(self.values)

    @property
    def left(self) -> int:
        return len(self) - self.said


def outputs_of(n: int, order: int) -> tuple[int, ...]:
    """Which of the last n rows of a question want output: the last, and at times another."""
    return (order % n, n - 1) if order % 4 == 0 and order % n != n - 1 else (n - 1,)


@dataclass
class Saved:
    state: bytes
    history: History
    shares_cells: bool
    adapters: int


class Player:
    def __init__(self, model: Model, script: Script) -> None:
        self.model, self.setting = model, script.setting
        self.n_seq = self.setting["n_seq"]
        self.mrope = model.client.is_mrope
        self.teller = self.open(self.setting["n_ubatch"])
        self.alone = [Alone(model, 2048, self.setting["prepares"]) for _ in range(self.n_seq)]
        self.histories = [History(self.mrope) for _ in range(self.n_seq)]
        self.to_say: list[list[Piece]] = [[] for _ in range(self.n_seq)]
        self.saved: list[Saved] = []
        self.shares_cells = [False] * self.n_seq  # such a sequence cannot be shifted without the other
        self.moved = False  # copies or shifts are done with the next batch
        self.announced_in_vain = False
        self.n_pictures = 0
        self.n_compared = 0
        self.rng = random.Random(1)

    def open(self, n_ubatch: int) -> Teller:
        return Teller(
            self.model,
            self.setting["prepares"],
            n_ctx=self.setting["n_ctx"],
            n_batch=self.setting["n_batch"],
            n_ubatch=min(n_ubatch, self.setting["n_batch"]),
            n_seq_max=self.n_seq,
            kv_unified=self.setting["unified"],
        )

    def close(self) -> None:
        self.teller.close()
        for alone in self.alone:
            alone.close()

    def play(self, steps: list[tuple[Any, ...]]) -> None:
        for name, *arguments in steps:
            getattr(self, name)(*arguments)
            self.check_memory(f"after {name}")

    # --- what a sequence wants to say, and saying it ---

    def text(self, seq: int, n: int, asks: bool) -> None:
        self.to_say[seq].append(Piece([self.rng.randrange(3, N_TOKENS) for _ in range(n)], asks))

    def picture(self, seq: int, rows: int, cols: int, announced: bool) -> None:
        self.n_pictures += 1
        self.to_say[seq].append(Piece(Picture(self.n_pictures, rows, cols), announced=announced))

    def feed(self, picks: list[tuple[int, int]], order: int, abort: int = -1) -> None:
        """One batch of rows of several sequences, in any order; rows of one sequence keep theirs."""
        kind, shares, room = None, [], self.setting["n_batch"]
        for seq, size in picks:
            piece = self.to_say[seq][0] if self.to_say[seq] else None
            if piece is None or room == 0 or (kind is not None and self.kind(piece) != kind):
                continue
            kind = self.kind(piece)
            size = min(size, piece.left, room)
            room -= size
            shares.append((seq, piece, size))
        if not shares or (kind == "goes on" and self.announced_in_vain):
            return
        rows, turns = {}, []
        for seq, piece, size in shares:
            rows[seq] = self.rows_of(seq, piece, size, any(p.announced for _, p, _ in shares))
            turns += [seq] * size
        random.Random(order).shuffle(turns)
        if self.decode(
            rows, turns, {seq: piece.asks and size == piece.left for seq, piece, size in shares}, order, abort
        ):
            for seq, piece, size in shares:
                piece.start = rows[seq][0].pos if piece.said == 0 else piece.start
                piece.said += size
                if piece.left == 0:
                    self.to_say[seq].pop(0)
            self.announced_in_vain = False
        elif kind == "starts":
            self.announced_in_vain = True

    @staticmethod
    def kind(piece: Piece) -> str:
        if not isinstance(piece.values, Picture):
            return "text"
        return "goes on" if piece.said else "starts"

    def rows_of(self, seq: int, piece: Piece, size: int, announced: bool) -> list[Row]:
        history, pruning = self.histories[seq], self.teller.pruning
        if not isinstance(piece.values, Picture):
            words = piece.values[piece.said : piece.said + size]
            return [Row(word, history.next_pos + i, pruning=pruning) for i, word in enumerate(words)]
        start = piece.start if piece.said else history.next_pos
        return [
            Row(
                piece.values,
                start if self.mrope else start + i,
                i,
                announced=i == 0 and (announced or history.ends_in_picture),
                pruning=pruning,
            )
            for i in range(piece.said, piece.said + size)
        ]

    def decode(
        self, rows: dict[int, list[Row]], turns: list[int], asks: dict[int, bool], order: int, abort: int
    ) -> bool:
        """One llama_decode, and every answer compared. Whether it was done."""
        batch, places = [], {seq: [] for seq in rows}
        for place, seq in enumerate(turns):
            batch.append((seq, rows[seq][len(places[seq])]))
            places[seq].append(place)
        wanted = {seq: outputs_of(len(rows[seq]), order) if asked else () for seq, asked in asks.items()}
        outputs = {places[seq][i] for seq in rows for i in wanted[seq]}

        if not self.attempt(batch, [i in outputs for i in range(len(batch))], -1 if self.moved else abort):
            return False
        self.moved = False
        for seq in rows:
            self.histories[seq].feed(rows[seq], wanted[seq])
        answers = {seq: [self.teller.logits(places[seq][i]) for i in wanted[seq]] for seq in rows}
        for seq in rows:
            if wanted[seq]:
                self.compare(seq, answers[seq])
        return True

    def attempt(self, batch: list[tuple[int, Row]], outputs: list[bool], abort: int) -> bool:
        """Whether there was room. A batch that fails must leave all as it was; one that was aborted comes again."""
        before = self.standing()
        lazy = any(before[seq][1] for seq, _ in batch) or (
            isinstance(batch[0][1].value, Picture) and self.teller.pruning
        )
        try:
            with self.aborting(abort):
                self.teller.decode(batch, outputs)
            return True
        except DecodeError as error:
            code = error.code
        if self.standing() != before:
            if lazy or code != 2:
                raise DisagreementError(f"a batch that failed with {code}: {before} became {self.standing()}")
            # ordinary batches are upstream's: what they got through before they were aborted stays
            for seq in {seq for seq, _ in batch}:
                start = min(row.pos for other, row in batch if other == seq)
                llama_cpp.llama_memory_seq_rm(self.teller.client.memory, seq, start, -1)
                self.forget(seq, start)
            return False
        if code == 2 and abort >= 0:
            return self.attempt(batch, outputs, -1)
        if code != 1:
            raise DisagreementError(f"llama_decode returned {code}")
        return False

    def standing(self) -> list[tuple[int, int, list[int], Any]]:
        teller = self.teller
        return [(teller.end(s), teller.pending(s), teller.cells(s), teller.pictures(s)) for s in range(self.n_seq)]

    @contextlib.contextmanager
    def aborting(self, after: int) -> Iterator[None]:
        """Computing stops after so many graph nodes; -1: never."""
        nodes = 0

        @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
        def aborted(_data: object) -> bool:
            nonlocal nodes
            nodes += 1
            return 0 <= after < nodes

        ctx = self.teller.client.ctx
        llama_cpp.llama_set_abort_callback(ctx, aborted, None)
        try:
            yield
        finally:
            llama_cpp.llama_set_abort_callback(ctx, ctypes.cast(None, llama_cpp.ggml_abort_callback), None)

    def say_all(self, seq: int) -> None:
        """Feed what a sequence has to say, in smaller batches where one does not fit; what finds no room is dropped."""
        while self.to_say[seq]:
            size = self.setting["n_batch"]
            before = self.to_say[seq][0], self.to_say[seq][0].said
            while size and self.to_say[seq] and (self.to_say[seq][0], self.to_say[seq][0].said) == before:
                self.feed([(seq, size)], size)
                size //= 2
            if self.to_say[seq] and (self.to_say[seq][0], self.to_say[seq][0].said) == before:
                self.to_say[seq] = []

    def finish(self) -> None:
        """Every sequence is asked something in the end, so that nothing that happened goes unseen."""
        for seq in range(self.n_seq):
            self.text(seq, 3, True)
            n_compared = self.n_compared
            self.say_all(seq)
            if self.n_compared == n_compared and self.histories[seq].living:  # no room: make some
                for other in range(self.n_seq):
                    if other != seq:
                        self.cut(other, 0.0)
                self.text(seq, 3, True)
                self.say_all(seq)

    # --- comparing ---

    def compare(self, seq: int, answers: list[np.ndarray]) -> None:
        self.n_compared += 1
        history = self.histories[seq]
        expected = self.alone[seq].tell(history)
        alone = self.alone[seq].teller
        assert alone
        pictures, alone_pictures = self.teller.pictures(seq), alone.pictures(0)
        if pictures != alone_pictures:
            raise DisagreementError(f"sequence {seq}: pictures {pictures}, alone {alone_pictures}")
        if self.teller.cells(seq) != alone.cells(0):
            raise DisagreementError(f"sequence {seq}: cells {self.teller.cells(seq)}, alone {alone.cells(0)}")
        for i, (answer, other) in enumerate(zip(answers, expected, strict=True)):
            worst = float(np.abs(answer - other).max())
            if not worst < TOLERANCE:
                raise DisagreementError(f"sequence {seq}, output {i} of {len(answers)}: logits differ by {worst:.2g}")

    def check_memory(self, when: str) -> None:
        for seq, history in enumerate(self.histories):
            if self.teller.end(seq) != history.last_pos:
                raise DisagreementError(
                    f"{when}: sequence {seq} ends at {self.teller.end(seq)}, not at {history.last_pos}"
                )

    # --- memory ---

    def place(self, seq: int, share: float) -> int:
        """The position of the row at this share of a sequence."""
        living = self.histories[seq].living
        return living[min(int(share * len(living)), len(living) - 1)][1]

    def forget(self, seq: int, start: int) -> None:
        self.histories[seq].cut(start)
        self.to_say[seq] = []
        if not self.histories[seq].living:
            self.shares_cells[seq] = False

    def cut(self, seq: int, share: float) -> None:
        """What comes after this share of the sequence is removed."""
        if not self.histories[seq].living:
            return
        start = self.place(seq, share) if share else 0
        if self.histories[seq].can_cut(start):
            assert llama_cpp.llama_memory_seq_rm(self.teller.client.memory, seq, start, -1)
            self.forget(seq, start)

    def middle(self, seq: int, first: float, last: float, close_gap: bool) -> None:
        """A piece in the middle is removed and, as in a context shift, what follows moves down."""
        history, memory = self.histories[seq], self.teller.client.memory
        if not history.living:
            return
        start, stop = self.place(seq, first), self.place(seq, last)
        if start == stop or not (history.can_cut(start) if history.last_pos < stop else history.can_remove()):
            return
        self.to_say[seq] = []
        assert llama_cpp.llama_memory_seq_rm(memory, seq, start, stop)
        history.remove(start, stop)
        if close_gap and not self.mrope and not self.shares_cells[seq] and history.last_pos >= stop:
            llama_cpp.llama_memory_seq_add(memory, seq, stop, -1, start - stop)
            history.shift(stop, start - stop)
            self.moved = True

    def copy(self, src: int, dst: int, share: float, empties: bool) -> None:
        """The whole of a sequence, or how it starts, becomes another."""
        history, unified = self.histories[src], self.setting["unified"]
        if src == dst or not history.living:
            return
        stop = -1 if share == 1.0 or not unified else self.place(src, share)
        if stop >= 0 and not history.can_cut(stop):
            return
        memory = self.teller.client.memory
        if empties or unified:  # one cache for each: the copy replaces what was there
            llama_cpp.llama_memory_seq_rm(memory, dst, -1, -1)
        llama_cpp.llama_memory_seq_cp(memory, src, dst, -1, stop)
        self.histories[dst] = history.copy()
        self.to_say[dst] = []
        if stop >= 0:
            self.histories[dst].cut(stop)
        if unified:
            self.shares_cells[src] = self.shares_cells[dst] = True
        else:
            self.moved = True

    def keep(self, seq: int) -> None:
        llama_cpp.llama_memory_seq_keep(self.teller.client.memory, seq)
        for other in range(self.n_seq):
            if other != seq:
                self.forget(other, 0)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.teller.client.memory, True)
        for seq in range(self.n_seq):
            self.forget(seq, 0)

    # --- states ---

    def save(self, seq: int) -> None:
        if self.moved or not self.histories[seq].living:
            return  # upstream copies and shifts with the next batch, and saves what is there now
        ctx = self.teller.client.ctx
        size = llama_cpp.llama_state_seq_get_size(ctx, seq)
        buffer = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(ctx, buffer, size, seq) != size:
            raise DisagreementError(f"sequence {seq} cannot be saved")
        self.saved.append(Saved(bytes(buffer), self.histories[seq].copy(), False, self.teller.adapters))

    def load(self, number: int, seq: int) -> None:
        if not self.saved:
            return
        saved = self.saved[number % len(self.saved)]
        if saved.adapters != self.teller.adapters:
            return  # what waits would be settled under adapters that it was not decoded with
        buffer = (ctypes.c_uint8 * len(saved.state)).from_buffer_copy(saved.state)
        if llama_cpp.llama_state_seq_set_data(self.teller.client.ctx, buffer, len(saved.state), seq):
            self.histories[seq] = saved.history.copy()
        else:  # no room
            llama_cpp.llama_memory_seq_rm(self.teller.client.memory, seq, -1, -1)
            self.histories[seq].cut(0)
        self.to_say[seq] = []
        self.shares_cells[seq] = False

    def move(self, n_ubatch: int) -> None:
        """Everything into another context."""
        if self.moved:
            return
        ctx = self.teller.client.ctx
        size = llama_cpp.llama_state_get_size(ctx)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_get_data(ctx, buffer, size)
        other = self.open(n_ubatch)
        other.set_pruning(self.teller.pruning)
        other.set_adapters(self.teller.adapters)
        self.teller.close()
        self.teller = other
        if written != size or llama_cpp.llama_state_set_data(other.client.ctx, buffer, size) != size:
            raise DisagreementError("the state cannot be moved to another context")

    # --- settings ---

    def pruning(self, on: bool) -> None:
        self.teller.set_pruning(on)

    def adapt(self, number: int) -> None:
        if number == self.teller.adapters:
            return
        self.teller.set_adapters(number)
        for history in self.histories:
            history.note(Adapted(number, self.teller.pruning))

    def prepare(self, seq: int) -> None:
        if self.histories[seq].living and not self.moved and pruned.prepare(self.teller.client, seq) == pruned.OK:
            self.histories[seq].note(Prepared())

    def topup(self, seq: int) -> None:
        if self.histories[seq].living and pruned.topup(self.teller.client, seq) == pruned.OK:
            self.histories[seq].note(ToppedUp())

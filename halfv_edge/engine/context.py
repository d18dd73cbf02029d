"""A sequence of a llama_context: what is in it, and how to make it something else with the least work."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

import halfv_cpp
import numpy as np
from halfv_cpp import ggml_h, halfv_h, llama_h, log, mtmd_helper_h

from halfv_edge.engine.encoder import Chunk, Encoder
from halfv_edge.errors import HalfVError, RunError

Item = int | Chunk
SEQ = 0  # the only one of a context with one sequence

# Asked before every node of a graph. A Python function would have to wait for the interpreter each time, on the compute
# threads; strlen says by itself whether the text that it is given is empty, and its result reads as a bool.
ABORT = ctypes.cast(
    (ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)).strlen, ggml_h.ggml_abort_callback
)


class StoppedError(Exception):
    """Evaluation was stopped on request."""


def _is_token(item: Item) -> TypeGuard[int]:
    return not isinstance(item, Chunk)


def n_cells(items: Sequence[Item]) -> int:
    return sum(item.n_tokens if isinstance(item, Chunk) else 1 for item in items)


def common(items: Sequence[Item], others: Sequence[Item]) -> int:
    """How many items from the first on are the same. A picture is the same when its embeddings are."""
    count = 0
    for mine, other in zip(items, others, strict=False):
        if mine is not other and (isinstance(mine, Chunk) or mine != other):
            break
        count += 1
    return count


class Context:
    """A llama_context, the items that one sequence of it holds, and their positions.

    Several may share a llama_context, each with a sequence and an equal part of the cells: see `sequences`. One that is
    alone may have `roomier`, which makes a llama_context to go on in when text has filled this one's deeper stages.
    """

    def __init__(
        self,
        pointer: int,
        encoder: Encoder,
        seq: int = SEQ,
        n_seq: int = 1,
        roomier: Callable[[], int] | None = None,
    ):
        self.pointer = pointer  # 0 when it is closed
        self.encoder = encoder
        self.seq = seq
        self._n_seq = n_seq
        self._roomier = roomier
        self.items: list[Item] = []
        self.n_evaluated = 0  # tokens and visual tokens that went through llama_decode
        self.decode_sec = 0.0
        self._starts: list[int] = []  # position of each item
        self._next = 0
        self.n_ctx: int = llama_h.llama_n_ctx(pointer) // n_seq
        self.n_batch = llama_h.llama_n_batch(pointer)
        self.n_ubatch = llama_h.llama_n_ubatch(pointer)
        self.is_own = False  # made as the model's own ones are
        self.n_cells = 0
        self._stop = ctypes.create_string_buffer(2)  # "" or "\1"
        self._obey_stop()
        sizes = self.stats().get("kv_size", ())
        self._has_small_stage = 0 < min(filter(None, sizes), default=0) < self.n_ctx

    def _obey_stop(self) -> None:
        llama_h.llama_set_abort_callback(self.pointer, ABORT, ctypes.cast(self._stop, ctypes.c_void_p))

    def sequences(self) -> list[Context]:
        """One for each sequence of this llama_context. This one is the first, and the one to close; all stop as one."""
        others = [Context(self.pointer, self.encoder, seq, self._n_seq) for seq in range(1, self._n_seq)]
        for other in others:
            other._stop = self._stop
        self._obey_stop()
        return [self, *others]

    def stop_with(self, other: Context) -> None:
        """What stops that one stops this one too."""
        if self._stop is not other._stop:
            self._stop = other._stop
            self._obey_stop()

    def request_stop(self, wanted: bool = True) -> None:
        """End what is being evaluated soon, with StoppedError; from any thread."""
        self._stop[0] = b"\1" if wanted else b"\0"

    @property
    def stopping(self) -> bool:
        return self._stop[0] != b"\0"

    def close(self) -> None:
        if self.pointer:
            llama_h.llama_free(self.pointer)
            self.pointer = 0

    @property
    def memory(self) -> int:
        return llama_h.llama_get_memory(self.pointer)

    def clear(self) -> None:
        if self._n_seq == 1:
            llama_h.llama_memory_clear(self.memory, True)
        else:
            llama_h.llama_memory_seq_rm(self.memory, self.seq, -1, -1)
        self.items, self._starts, self._next, self.n_cells = [], [], 0, 0

    @property
    def n_left(self) -> int:
        """Tokens of text that still fit."""
        left = [self.n_ctx - self.n_cells]
        if self._has_small_stage and not self._roomier:
            stats = self.stats()
            left += [size - used for size, used in zip(stats["kv_size"], stats["kv_cells"], strict=True) if size]
        return min(left)

    def common(self, items: Sequence[Item]) -> int:
        return common(self.items, items)

    def picture_positions(self) -> list[tuple[int, int]]:
        """Of each picture the first position, and the first behind it."""
        ends = [*self._starts[1:], self._next]
        places = zip(self.items, self._starts, ends, strict=True)
        return [(start, end) for item, start, end in places if isinstance(item, Chunk)]

    def check_room(self, items: Sequence[Item], what: str) -> None:
        """Whether a prompt of these items and an answer fit; `what` needs it."""
        needed = n_cells(items) + 1
        if needed > self.n_ctx:
            raise HalfVError(
                f"{what} needs a context of {needed} tokens, and this one has {self.n_ctx}",
                hint="load with {n_ctx}, or give fewer or smaller pictures",
                settings={"n_ctx": -(-needed // 1024) * 1024 + 1024},
            )
        largest = max((item.n_tokens for item in items if isinstance(item, Chunk)), default=0)
        if self.encoder.non_causal and largest > self.n_ubatch:
            raise HalfVError(
                f"A picture of {largest} tokens does not fit into one batch of {self.n_ubatch}, as this model needs it",
                hint="load with {n_batch} and {n_ubatch}",
                settings={"n_batch": largest, "n_ubatch": largest},
            )

    def truncate(self, count: int) -> None:
        """Forget all items but the first `count`; a memory that cannot do that forgets everything."""
        if count == len(self.items):
            return
        if not llama_h.llama_memory_seq_rm(self.memory, self.seq, self._starts[count], -1):
            self.clear()
            return
        self._next = self._starts[count]
        self.n_cells -= n_cells(self.items[count:])
        del self.items[count:], self._starts[count:]

    def evaluate(self, items: Sequence[Item], output: bool) -> None:
        """Append items; with `output` the last one gives logits. Stopped or failed: what was evaluated stays listed."""
        if output and isinstance(items[-1], Chunk):
            raise HalfVError("The chat template ends with the picture, so there is nothing to answer to.")
        at = 0
        while at < len(items):
            if self.stopping:
                raise StoppedError
            item = items[at]
            if isinstance(item, Chunk):
                self._picture(item)
                at += 1
                continue
            rest = itertools.islice(items, at, at + self.n_batch)
            tokens: list[int] = list(itertools.takewhile(_is_token, rest))  # type: ignore[arg-type]
            at += len(tokens)
            self._text(tokens, output and at == len(items))

    def _text(self, tokens: Sequence[int], output: bool) -> None:
        flags = [False] * (len(tokens) - 1) + [output]
        positions = range(self._next, self._next + len(tokens))
        with self._timed():
            self._run(lambda: self._decode(tokens, positions, [self.seq] * len(tokens), flags), len(tokens))
        self._append(tokens)

    def evaluate_each(self, tokens: Sequence[int]) -> None:
        """Append tokens, each of which gives logits: output n is that of token n. Stopped or failed: none was."""
        if self.stopping:
            raise StoppedError
        positions, seqs = range(self._next, self._next + len(tokens)), [self.seq] * len(tokens)
        with self._timed():
            self._run(lambda: self._decode(tokens, positions, seqs, [True] * len(tokens)), len(tokens))
        self._append(tokens)

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], seqs: Sequence[int], outputs: Sequence[bool]
    ) -> int:
        """llama_decode's return code."""
        ids = np.array(tokens, np.int32)
        places = np.array(positions, np.int32)
        counts = np.ones(len(ids), np.int32)
        each = {seq: ctypes.pointer(ctypes.c_int32(seq)) for seq in set(seqs)}
        flags = np.array(outputs, np.int8)
        batch = llama_h.llama_batch()
        batch.n_tokens = len(ids)
        batch.token = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.pos = places.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = (ctypes.POINTER(ctypes.c_int32) * len(ids))(*[each[seq] for seq in seqs])
        batch.logits = flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        return int(llama_h.llama_decode(self.pointer, batch))

    def _append(self, tokens: Sequence[int]) -> None:
        self._starts += range(self._next, self._next + len(tokens))
        self.items += tokens
        self._next += len(tokens)
        self.n_cells += len(tokens)
        self.n_evaluated += len(tokens)

    @staticmethod
    def evaluate_together(contexts: Sequence[Context], tokens: Sequence[int]) -> None:
        """Append a token to each of these sequences of one llama_context; output n is that of sequence n.

        Stopped or failed: nothing was appended to any of them.
        """
        first = contexts[0]
        if first.stopping:
            raise StoppedError
        start = time.perf_counter()
        log.clear()
        positions, seqs = [one._next for one in contexts], [one.seq for one in contexts]
        first._check(first._decode(tokens, positions, seqs, [True] * len(tokens)))
        seconds = time.perf_counter() - start
        for context, token in zip(contexts, tokens, strict=True):
            context.decode_sec += seconds  # each of them waited for it
            context._append([token])

    def _picture(self, chunk: Chunk) -> None:
        assert chunk.embd is not None
        after = ctypes.c_int32(self._next)
        values = chunk.embd.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

        def decode() -> int:
            rc = mtmd_helper_h.mtmd_helper_decode_image_chunk(
                self.encoder.pointer, self.pointer, chunk.pointer, values, self._next, self.seq, self.n_batch,
                ctypes.byref(after), mtmd_helper_h.mtmd_helper_post_decode_callback(0), None,
            )  # fmt: skip
            if rc != 0:  # of a picture in several batches some may be in
                llama_h.llama_memory_seq_rm(self.memory, self.seq, self._next, -1)
            return int(rc)

        with self._timed():
            self._run(decode, chunk.n_tokens)
        self._starts.append(self._next)
        self.items.append(chunk)
        self._next = after.value
        self.n_cells += chunk.n_tokens
        self.n_evaluated += chunk.n_tokens

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.decode_sec += time.perf_counter() - start

    def _run(self, decode: Callable[[], int], n_tokens: int) -> None:
        """Decode, in a roomier context where text has filled a deeper stage of this one."""
        log.clear()
        rc = decode()
        stage_is_full = rc == 1 and self._has_small_stage and self.n_cells + n_tokens <= self.n_ctx
        if stage_is_full and self._roomier:
            self._move(self._roomier())
            log.clear()
            rc = decode()
        elif stage_is_full:
            raise HalfVError(
                "Text and kept visual tokens fill the deeper layers' share of the context",
                hint="start over, or load with a smaller {visual_share} or a larger {n_ctx}",
                settings={"visual_share": None, "n_ctx": None},
            )
        self._check(rc)

    def _move(self, pointer: int) -> None:
        """Go on in another llama_context, with all that this one holds."""
        size = llama_h.llama_state_seq_get_size(self.pointer, self.seq)
        state = (ctypes.c_uint8 * size)()
        size = llama_h.llama_state_seq_get_data(self.pointer, state, size, self.seq)
        if llama_h.llama_state_seq_set_data(pointer, state, size, self.seq) != size:
            llama_h.llama_free(pointer)
            raise RunError(f"The conversation could not move to a larger context: {log.last_words()}.")
        llama_h.llama_free(self.pointer)
        self.pointer, self._roomier, self.is_own = pointer, None, False
        self._has_small_stage = False
        self._obey_stop()

    def _check(self, rc: int) -> None:
        if rc == 0:
            return
        if self.stopping:
            raise StoppedError
        if rc == 1:
            raise HalfVError(
                f"The context of {self.n_ctx} tokens is full",
                hint="start over, or load with a larger {n_ctx}",
                settings={"n_ctx": None},
            )
        if log.out_of_memory():
            raise HalfVError(
                "Out of memory while computing",
                hint="load with a smaller {n_ctx} or {n_gpu_layers}",
                settings={"n_ctx": None, "n_gpu_layers": None},
            )
        raise RunError(f"llama.cpp could not compute ({rc}): {log.last_words()}.")

    #
    # HalfV
    #

    def prepare(self) -> None:
        """Choose the coverage of the pictures that wait, and carry it through stage II."""
        with self._timed():
            rc = halfv_h.halfv_prepare(self.pointer, self.seq)
            if rc == halfv_h.HALFV_ERR_MEMORY and self._roomier:
                self._move(self._roomier())
                rc = halfv_h.halfv_prepare(self.pointer, self.seq)
        if rc == halfv_h.HALFV_ERR_COMPUTE and self.stopping:
            raise StoppedError
        if rc not in (halfv_h.HALFV_OK, halfv_h.HALFV_NOTHING, halfv_h.HALFV_ERR_UNSUPPORTED):
            raise RunError(f"The picture could not be prepared: {halfv_h.halfv_last_error().decode()}.")

    def top_up(self) -> None:
        """What follows is a new question: pruned tokens that matter to it come back."""
        halfv_h.halfv_topup(self.pointer, self.seq)

    def stats(self) -> dict[str, Any]:
        """halfv_stats, {} for a context that does not prune."""
        try:
            return halfv_cpp.stats(self.pointer, self.seq)
        except halfv_cpp.CallError:
            return {}

    def image_tokens(self, image: int, stage: int) -> list[int] | None:
        """Tokens of a picture that reached a stage, None for a context that does not prune."""
        try:
            return halfv_cpp.image_tokens(self.pointer, self.seq, image, stage)
        except halfv_cpp.CallError:
            return None

"""Selectors at work: called by the library where a stage begins, or before the language model."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import halfv_compare_h, halfv_mtmd_h, mtmd_h

from halfv_edge.engine.context import Item
from halfv_edge.engine.encoder import Chunk, Encoded
from halfv_edge.engine.runtime import Runtime
from halfv_edge.errors import RunError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.policies import Policy
from halfv_edge.measure.selectors import BOUNDARY, INPUT, Chosen, Seen, coverage, unit

Select = Callable[[halfv_compare_h.halfv_choosing], Chosen]


def selecting(name: str) -> Select:
    """By one of the selectors."""
    select = BOUNDARY[name]
    return lambda what: select(seen_by(what), what.n_keep)


class Chooser:
    """A selector that contexts ask. It has to live as long as they do."""

    def __init__(self, select: Select):
        self._select = select
        self.error: BaseException | None = None
        self._function = halfv_compare_h.halfv_chooser(self._choose)

    def serve(self, context: int) -> None:
        """Choose for a llama_context."""
        halfv_cpp.check(halfv_compare_h.halfv_set_chooser(context, self._function, None))

    def _choose(self, pointer: Any, out: Any, flops: Any, _user: object) -> int:
        try:
            what = pointer.contents
            chosen = self._select(what)
            for at, token in enumerate(chosen.tokens):
                out[at] = int(token)
            flops[0] = chosen.flops
            return len(chosen.tokens)
        except BaseException as error:  # nothing may cross the C code
            self.error = error
            return -1


@contextlib.contextmanager
def raising_what_failed(choosers: Iterable[Chooser]) -> Iterator[None]:
    """The error of a selector, in place of that of the batch which it failed."""
    try:
        yield
    except RunError:
        for chooser in choosers:
            if chooser.error:
                raise chooser.error from None
        raise


def seen_by(what: halfv_compare_h.halfv_choosing) -> Seen:
    """What the library shows, as a selector takes it."""
    before, n, after = what.n_before, what.n_visual, what.n_after
    rows = before + n + after
    states = _rows(what.states, (rows, what.n_embd))
    features = _rows(what.features, (rows, what.n_embd))
    keys = _rows(what.keys, (rows, what.n_head_kv, what.head_dim)).repeat(what.n_head // what.n_head_kv, axis=1)
    queries = _rows(what.queries, (before + after, what.n_head, what.head_dim))
    visual = _rows(what.visual_queries, (n, what.n_head, what.head_dim))
    queries = np.concatenate([queries[:before], visual, queries[before:]])
    picture, text = slice(before, before + n), slice(before + n, rows)
    scale = 1 / np.sqrt(what.head_dim)

    def logits(first: int) -> Floats:
        found: Floats = np.einsum("qhd,khd->hqk", queries[first:], keys) * scale
        found[:, np.arange(rows)[None, :] > np.arange(first, rows)[:, None]] = -np.inf
        return found

    of_text = logits(before + n)
    weights = np.exp(of_text - of_text.max(axis=-1, keepdims=True))
    attention = (weights / weights.sum(axis=-1, keepdims=True))[:, :, picture]
    parts = states[picture], features[picture], states[text], features[text]
    return Seen(*parts, attention, pairs=lambda: logits(0), n_before=before)


def _rows(pointer: Any, shape: tuple[int, ...]) -> Floats:
    return np.ctypeslib.as_array(pointer, shape).astype(np.float64)


class ChosenChunk(Chunk):
    """A picture whose rows a selector of this module chose."""

    flops = 0.0


def choose_input(
    policy: Policy, runtime: Runtime, planned: Encoded, head: Sequence[Item], tail: Sequence[Item],
    salience: Floats | None = None,
) -> list[Item]:  # fmt: skip
    """The prompt up to the picture's end with as many of its rows as are planned. `head` has all of them.

    salience: of the whole picture's tokens, for selectors that go by the encoder's attention.
    """
    select = INPUT.get(policy.selector or "", coverage)
    text = unit(token_embeddings(runtime, [item for item in tail if isinstance(item, int)]))
    plans = iter(planned.chunks)
    found: list[Item] = []
    for item in head:
        found.append(_chosen(item, next(plans), select, text, salience) if isinstance(item, Chunk) else item)
    return found


def cover_input(runtime: Runtime, planned: Encoded, items: Sequence[Item]) -> list[Item]:
    """A prompt with as many of the pictures' rows as are planned, those that libmtmd would choose. `items` has all."""
    plans, no_text = iter(planned.chunks), np.zeros((0, runtime.n_embd))
    return [_chosen(item, next(plans), coverage, no_text, None) if isinstance(item, Chunk) else item for item in items]


def _chosen(whole: Chunk, plan: Chunk, select: Any, text: Floats, salience: Floats | None) -> Chunk:
    if plan.n_tokens == whole.n_tokens:
        return whole  # too small a picture
    assert whole.embd is not None
    rows = whole.embd[:, : text.shape[1]].astype(np.float64)
    looked_at = None if salience is None else salience[whole.places()]
    chosen = select(Seen(rows, unit(rows), text, text, salience=looked_at), plan.n_tokens)
    kept = np.sort(chosen.tokens)
    light = ChosenChunk(mtmd_h.mtmd_input_chunk_copy(plan.pointer))
    numbers = (ctypes.c_int32 * len(kept))(*kept.tolist())
    halfv_cpp.check(halfv_mtmd_h.halfv_picture_set_kept(light._image(), numbers, len(kept)))
    light.embd = np.ascontiguousarray(whole.embd[kept])
    light.flops = chosen.flops
    return light


def token_embeddings(runtime: Runtime, tokens: Sequence[int]) -> Floats:
    """What tokens are before the first layer, [n, n_embd]."""
    rows = np.zeros((len(tokens), runtime.n_embd), np.float32)
    for token, row in zip(tokens, rows, strict=True):
        to = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        halfv_cpp.check(halfv_compare_h.halfv_token_embedding(runtime.pointer, token, to))
    return rows.astype(np.float64)

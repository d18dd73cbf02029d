"""Scores of a twig: where the last token of a prompt looks in the twig's last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import halfv_compare_h, halfv_h

from halfv_edge.engine.context import Context, Item, n_cells
from halfv_edge.engine.encoder import Chunk, Encoder
from halfv_edge.engine.loading import flops_of
from halfv_edge.engine.runtime import Runtime
from halfv_edge.engine.twig import Twig
from halfv_edge.errors import RunError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.selectors import Chosen, top
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile

ROOM_STEP = 1024  # tokens by which its context grows


class TwigScores:
    """A twig that reads each prompt whole, before the model prunes it. It chooses at the first boundary alone."""

    def __init__(self, runtime: Runtime, path: str):
        base = ModelFile.read(runtime.path)
        self.twig = Twig(path, base, runtime.pointer, runtime.options, runtime.n_threads)
        self._context: Context | None = None
        self._scores: list[Floats] = []  # of pictures that were not chosen from yet
        self._flops = 0.0

    def close(self) -> None:
        self._drop()
        self.twig.close()

    def _drop(self) -> None:
        if self._context:
            self._context.close()
            self._context = None

    def read(self, items: Sequence[Item], encoder: Encoder) -> list[Floats]:
        """A prompt: the scores of each of its pictures' tokens, by which they are chosen next."""
        n_tokens = n_cells(items)
        if self._context and (self._context.n_ctx < n_tokens or self._context.encoder is not encoder):
            self._drop()
        if self._context is None:
            room = -(-n_tokens // ROOM_STEP) * ROOM_STEP
            self._context = self.twig.context(encoder, room, observable=True)
        attention = self._looks(self._context, items)
        self._scores, at = [], 0
        for item in items:
            n = item.n_tokens if isinstance(item, Chunk) else 1
            if isinstance(item, Chunk):
                self._scores.append(attention[at : at + n])
            at += n
        self._flops = flops_of(self.twig.pointer, Profile.default(self.twig.n_layer), 0, 0, n_tokens)[0]
        return list(self._scores)

    def _looks(self, context: Context, items: Sequence[Item]) -> Floats:
        context.clear()
        found: list[Floats] = []

        def observe(pointer: Any, _user: object) -> bool:
            seen = pointer.contents
            is_last = seen.layer == self.twig.n_layer - 1
            if is_last:
                found.append(np.ctypeslib.as_array(seen.attention, (seen.n_tokens,)).astype(np.float64))
            return not is_last  # what it would say is not asked

        observer = halfv_compare_h.halfv_observer(observe)
        halfv_cpp.check(halfv_compare_h.halfv_hold(context.pointer, True))
        try:
            context.evaluate(items, output=False)
            halfv_compare_h.halfv_observe(context.pointer, None, observer, None)
        finally:
            halfv_compare_h.halfv_hold(context.pointer, False)
        if not found:
            raise RunError(f"{self.twig.path} could not read the prompt: {halfv_h.halfv_last_error().decode()}.")
        return found[0]

    def choose(self, what: halfv_compare_h.halfv_choosing) -> Chosen:
        """Of the picture whose turn it is; the first one pays for all that the twig computed."""
        scores = self._scores.pop(0)[np.ctypeslib.as_array(what.index, (what.n_visual,))]
        flops, self._flops = self._flops, 0.0
        return Chosen(top(scores, what.n_keep), flops)

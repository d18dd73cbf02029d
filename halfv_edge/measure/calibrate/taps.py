"""A model under observation: boundaries, what freezing one layer does, answers, and what a profile does to them."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import halfv_cpp
import numpy as np
from halfv_cpp import halfv_compare_h, halfv_h, llama_h, log

from halfv_edge.engine.context import SEQ, Context, Item, n_cells
from halfv_edge.engine.encoder import Chunk, Encoder
from halfv_edge.engine.images import Picture
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError, RunError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.calibrate import entropy
from halfv_edge.measure.choosing import cover_input
from halfv_edge.profile.profile import Intake, Profile

ROOM = 64  # tokens of an answer, and more than enough
RATE_TOKENS = 96  # of text, to see how fast this machine is
OTHERS = 2  # encoders beside the model's own: one that gives all rows, one that says how many will go on


class NotANumberError(HalfVError):
    """The model gives NaN or infinity on this sample."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One sample, unpruned. Lists of n_layer + 1 or n_layer numbers."""

    visual: list[float]
    text: list[float]
    all: list[float]
    attention: list[float]  # NaN where a layer has none
    layer_kl: list[float] | None  # None when freezing was not asked for; NaN in a layer that cannot be frozen
    n_visual: int
    n_text: int


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """What the unpruned model says to a sample, greedily: its tokens and the logits [n, n_vocab] that chose them."""

    items: list[Item]
    tokens: list[int]
    logits: Floats


class Probe:
    """Runs samples through one model; a context per profile."""

    def __init__(self, model: Model):
        self.runtime = model.runtime
        self.n_layer = model.n_layer
        self.n_embd = model.runtime.n_embd
        self._context: Context | None = None
        self._profile: Profile | None = None
        self._others: collections.OrderedDict[Intake, Encoder] = collections.OrderedDict()  # the last used comes last

    def close(self) -> None:
        self._drop()
        for encoder in self._others.values():
            encoder.close()
        self._others.clear()

    def _drop(self) -> None:
        if self._context:
            self._context.close()
            self._context = None

    def context(self, profile: Profile | None = None) -> Context:
        """An empty context with this profile; None: unpruned, and observable."""
        own = self.runtime.encoder
        profile = profile or own.intake.within(Profile.default(self.n_layer))
        if self._context and self._profile == profile:
            self._context.clear()
            return self._context
        self._drop()
        self._context, self._profile = self.runtime.context(profile, encoder=own), profile
        return self._context

    def encoder(self, intake: Intake) -> Encoder:
        """The model's, or the same with another intake; of others the last OTHERS stay, as each has its weights."""
        if intake == self.runtime.encoder.intake:
            return self.runtime.encoder
        if intake not in self._others:
            while len(self._others) >= OTHERS:
                self._others.popitem(last=False)[1].close()
            options = self.runtime.options
            self._others[intake] = self.runtime.load_encoder(
                image_max_tokens=options.image_max_tokens, intake=intake, weights=options.mmproj_type
            )
        self._others.move_to_end(intake)
        return self._others[intake]

    def items(self, picture: Picture, question: str, encoder: Encoder | None = None) -> list[Item]:
        """The prompt as the model's chat template has it."""
        return self.runtime.prompt(picture, question, encoder).items

    def items_under(self, profile: Profile, picture: Picture, question: str) -> list[Item]:
        """The prompt with what a profile leaves out before the language model.

        A picture is encoded once for all shares, where no row has to stay.
        """
        encoder = self.encoder(profile.intake)
        if profile.input_keep == 1 or not encoder.is_mrope:
            return self.items(picture, question, encoder)
        planned = encoder.tokens(picture)
        whole = self.items(picture, question, self.encoder(dataclasses.replace(profile.intake, input_keep=1.0)))
        return cover_input(self.runtime, planned, whole)

    def observe(self, items: Sequence[Item], freeze: bool) -> Observation:
        """Layer by layer, one boundary in memory at a time."""
        watch = _Watch(self.n_layer)
        context = self.context()
        if n_cells(items) + ROOM > context.n_ctx:
            raise HalfVError(
                f"it has {n_cells(items)} tokens, too many for a context of {context.n_ctx}",
                hint="give a larger {n_ctx}",
                settings={"n_ctx": None},
            )
        halfv_cpp.check(halfv_compare_h.halfv_hold(context.pointer, True))
        try:
            context.evaluate(items, output=False)
            flags = (ctypes.c_uint8 * self.n_layer)(*[freeze] * self.n_layer)
            observer = halfv_compare_h.halfv_observer(watch)
            rc = halfv_compare_h.halfv_observe(context.pointer, flags, observer, None)
        finally:
            halfv_compare_h.halfv_hold(context.pointer, False)
        if watch.error:
            context.clear()
            raise watch.error
        if rc != halfv_h.HALFV_OK:
            context.clear()
            raise RunError(f"it could not be observed: {halfv_h.halfv_last_error().decode()}")
        if len(watch.curves["all"]) <= self.n_layer:  # Ctrl-C came as C called Python, and the boundary is lost
            context.clear()
            raise KeyboardInterrupt
        return watch.observation(freeze)

    def answer(self, items: Sequence[Item], length: int) -> GreedyAnswer:
        """Up to `length` tokens, fewer when the model ends its answer."""
        context = self.context()
        context.evaluate(items, output=True)
        rows = [self.runtime.logits(context)]
        tokens = [int(rows[0].argmax())]
        while len(tokens) < length and not self.runtime.is_end(tokens[-1]):
            context.evaluate(tokens[-1:], output=True)
            rows.append(self.runtime.logits(context))
            tokens.append(int(rows[-1].argmax()))
        return GreedyAnswer(list(items), tokens, np.stack(rows))

    def fits(self, profile: Profile) -> bool:
        """Whether this model can have such stages. With recurrent layers, or shared caches, not all are possible."""
        pointer = self.runtime.pointer
        with self.runtime.lock:
            before = halfv_cpp.model_profile(pointer)
            try:
                halfv_cpp.set_model_profile(pointer, profile.to_c())
            except halfv_cpp.CallError:
                return False
            finally:
                halfv_cpp.set_model_profile(pointer, before)
        return True

    def divergence(
        self, answer: GreedyAnswer, profile: Profile, items: Sequence[Item] | None = None
    ) -> tuple[float, float]:
        """KL from the unpruned model over its own answer, and the share of its tokens that are still the likeliest.

        items: the prompt where the profile leaves patches out.
        """
        context = self.context(profile)
        context.evaluate(answer.items if items is None else items, output=True)
        logits = np.stack([self.runtime.logits(context), *self._follow(context, answer.tokens[:-1])])
        agree = float(np.mean(logits.argmax(axis=1) == np.array(answer.tokens)))
        return entropy.kl(answer.logits, logits), agree

    def kept(self, items: Sequence[Item], profile: Profile) -> list[tuple[list[int] | None, list[int] | None]]:
        """Tokens of each chunk that reach stage II and III."""
        context = self.context(profile)
        context.evaluate(items, output=True)
        count = sum(isinstance(item, Chunk) for item in items)
        return [(context.image_tokens(at, 2), context.image_tokens(at, 3)) for at in range(count)]

    def flops(self, profile: Profile | None, n_before: int, n_visual: int, n_after: int) -> tuple[float, float]:
        """Of the language model, from the picture on: unpruned, and with this profile."""
        return self.runtime.flops(profile, n_before, n_visual, n_after)

    def flops_per_sec(self) -> float:
        """Of a text, on this machine as it is now."""
        context = self.context()
        token = max(0, llama_h.llama_vocab_bos(self.runtime.vocab))
        best = float("inf")
        for _ in range(2):  # the first one touches the weights
            context.clear()
            start = time.perf_counter()
            context.evaluate([token] * RATE_TOKENS, output=True)
            best = min(best, time.perf_counter() - start)
        context.clear()
        return self.flops(None, 0, 0, RATE_TOKENS)[0] / best

    def _follow(self, context: Context, tokens: Sequence[int]) -> list[Floats]:
        """The logits at each of these tokens, in one batch. They do not become items of the context."""
        if not tokens:
            return []
        batch = llama_h.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at], batch.logits[at] = token, context._next + at, 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, SEQ
            rc = llama_h.llama_decode(context.pointer, batch)
            if rc != 0:
                raise RunError(f"llama.cpp could not compute ({rc}): {log.last_words()}.")
            return [self.runtime.logits(context, at) for at in range(len(tokens))]
        finally:
            llama_h.llama_batch_free(batch)


class _Watch:
    """The observer: reduces each boundary to a few numbers at once."""

    def __init__(self, n_layer: int):
        self.n_layer = n_layer
        self.error: BaseException | None = None
        self.curves: dict[str, list[float]] = {"visual": [], "text": [], "all": [], "attention": []}
        self.frozen: list[Floats | None] = []  # log-probabilities, float32
        self.layer_kl: list[float] = []
        self.counts = (0, 0)

    def __call__(self, pointer: ctypes._Pointer[halfv_compare_h.halfv_boundary], _user: object) -> bool:
        try:
            self.look(pointer.contents)
        except BaseException as error:  # nothing may cross the C code
            self.error = error
        return self.error is None

    def look(self, at: halfv_compare_h.halfv_boundary) -> None:
        states = np.ctypeslib.as_array(at.states, (at.n_tokens, at.n_embd))
        if not np.isfinite(states).all():
            what = f"enter layer {at.layer}" if at.layer < self.n_layer else "leave the last layer"
            raise NotANumberError(f"there are NaN or infinite values in the states that {what}")
        is_visual = np.ctypeslib.as_array(at.visual, (at.n_tokens,)) != 0
        rows = entropy.final_norm(states, np.ctypeslib.as_array(at.norm, (at.n_embd,)), at.norm_eps)
        self.counts = int(is_visual.sum()), int((~is_visual).sum())
        self.curves["visual"].append(entropy.matrix_entropy(rows[is_visual]))
        self.curves["text"].append(entropy.matrix_entropy(rows[~is_visual]))
        self.curves["all"].append(entropy.matrix_entropy(rows))
        logits = np.ctypeslib.as_array(at.logits, (at.n_vocab,)) if at.logits else None
        if at.layer < self.n_layer:
            share = np.ctypeslib.as_array(at.attention, (at.n_tokens,))[is_visual] if at.attention else np.array(np.nan)
            self.curves["attention"].append(float(share.sum(dtype=np.float64)))
            self.frozen.append(logits if logits is None else logits.copy())
        else:
            assert logits is not None
            self.layer_kl = [np.nan if frozen is None else entropy.kl(logits, frozen) for frozen in self.frozen]

    def observation(self, freeze: bool) -> Observation:
        return Observation(**self.curves, layer_kl=self.layer_kl if freeze else None, n_visual=self.counts[0],
                           n_text=self.counts[1])  # fmt: skip


def n_tokens(items: Sequence[Item]) -> tuple[int, int, int]:
    """Tokens before the first picture, visual ones, and the rest."""
    first = next(at for at, item in enumerate(items) if isinstance(item, Chunk))
    visual = n_cells([item for item in items if isinstance(item, Chunk)])
    return first, visual, len(items) - first - sum(isinstance(item, Chunk) for item in items)

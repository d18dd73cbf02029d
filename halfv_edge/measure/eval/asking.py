"""Questions put to one model under several policies, each with a context of its own."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h
from PIL import Image

from halfv_edge.engine.chat import Chat
from halfv_edge.engine.context import Context, Item, n_cells
from halfv_edge.engine.encoder import Chunk, Encoder
from halfv_edge.engine.images import Picture
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError, RunError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.calibrate import entropy
from halfv_edge.measure.choosing import Chooser, ChosenChunk, choose_input, raising_what_failed, selecting
from halfv_edge.measure.encoder_attention import EncoderAttention
from halfv_edge.measure.policies import CHOICES, Policy, TwigFile
from halfv_edge.measure.selectors import BY_ENCODER
from halfv_edge.measure.twig import TwigScores
from halfv_edge.measure.visual_cells import CalibratedRange, rewrite
from halfv_edge.profile.profile import Intake, Profile

BIG = (2048, 2048)  # pixels: more than any limit on tokens lets through
CTX_STEP = 256


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """What a model said to a question: its tokens, the logits that chose the first of them, and what it took."""

    tokens: list[int]
    text: str
    logits: Floats
    kl: float | None  # from the teacher, mean over the teacher's first tokens
    encode_s: float
    ahead_s: float  # text before the picture, the picture, and preparing
    enter_s: float  # from the question to the first token
    flops: float
    n_patches: int  # visual tokens of the picture, were it whole
    n_visual: int
    n_kept: int
    n_deep: int
    unpruned: str  # why, "" when it was pruned


EncoderKey = tuple[int | None, Intake, str]  # what tells encoders apart: size, and type of the weights


class Asker:
    """Runs a model under policies. Close it before the model."""

    def __init__(self, model: Model, max_tokens: int, kl_tokens: int):
        self.model = model
        self.runtime = model.runtime
        self.max_tokens = max_tokens
        self.kl_tokens = kl_tokens
        self._contexts: dict[Policy, Context] = {}
        self._choosers: list[Chooser] = []  # the library calls them as long as there are contexts
        self._ranges: dict[Policy, CalibratedRange] = {}  # and these
        self._own_encoder = model.encoder
        self._own_encoder._cache.clear()  # so that the encoding of every picture is timed
        options = model.runtime.options
        own = options.image_max_tokens, model.encoder.intake, options.mmproj_type
        self._encoders: dict[EncoderKey, Encoder] = {own: model.encoder}
        self._encode_s: dict[tuple[str, int | None, str | None], float] = {}
        self._twigs: dict[TwigFile, TwigScores] = {}
        self._attention: EncoderAttention | None = None  # for selectors that go by it

    def close(self) -> None:
        for context in self._contexts.values():
            context.close()
        for encoder in self._encoders.values():
            if encoder is not self._own_encoder:
                encoder.close()
        if self._attention is not None:
            self._attention.close()
        for twig in self._twigs.values():
            twig.close()

    def encoder(self, policy: Policy) -> Encoder:
        """One that sees as the policy wants; the model's own may leave patches out."""
        own, options = self._own_encoder, self.runtime.options
        limit = policy.max_tokens or options.image_max_tokens
        tau = policy.intake.pixel_tau if own.is_mrope else None  # others take every picture whole
        intake, weights = dataclasses.replace(policy.intake, pixel_tau=tau), policy.weights or options.mmproj_type
        key = limit, intake, weights
        if key not in self._encoders:
            encoder = self._encoders[key] = self.runtime.load_encoder(
                image_max_tokens=limit, intake=intake, weights=weights
            )
            if policy.max_tokens:
                self._check_limit(policy, policy.max_tokens, encoder)
        return self._encoders[key]

    @staticmethod
    def _check_limit(policy: Policy, limit: int, encoder: Encoder) -> None:
        n_tokens = n_cells(encoder.tokens(Picture("A large picture", Image.new("RGB", BIG))).chunks)
        if n_tokens > limit:
            raise HalfVError(
                f"The policy {policy.name} has no effect: {encoder.path.name} gives {n_tokens} tokens whatever the "
                "size of a picture, so nothing is saved by a smaller one."
            )

    def context(self, policy: Policy, n_prompt: int) -> Context:
        """Empty, and large enough."""
        room = n_prompt + self.max_tokens + 1
        context = self._contexts.get(policy)
        if context and context.n_ctx >= room:
            context.clear()
            return context
        if context:
            del self._contexts[policy]
            context.close()
        context = self._contexts[policy] = self._new_context(policy, room, undo_bytes=0, **self._seeing_logits(policy))
        if policy.choice != CHOICES[0]:
            from halfv_cpp import halfv_compare_h

            if policy.selector:
                self._choosers.append(Chooser(self._twig(policy).choose if policy.twig else selecting(policy.selector)))
                self._choosers[-1].serve(context.pointer)
            halfv_cpp.check(
                halfv_compare_h.halfv_set_choice(context.pointer, CHOICES.index(policy.choice), policy.seed)
            )
        return context

    def _new_context(self, policy: Policy, room: int, undo_bytes: int, **options: Any) -> Context:
        n_ctx = max(self.runtime.options.n_ctx or 0, -(-room // CTX_STEP) * CTX_STEP)
        encoder = self.encoder(policy)
        return self.runtime.context(policy.profile, n_ctx, undo_bytes=undo_bytes, encoder=encoder, **options)

    def _seeing_logits(self, policy: Policy) -> dict[str, Any]:
        """Settings of a context whose visual logits are mapped."""
        if not (policy.bits and policy.bits.calibrated):
            return {}
        self._ranges[policy] = CalibratedRange()
        return {"watch": self._ranges[policy].callback, "flash_attn": False}

    def chat(self, policy: Policy, room: int, undo_bytes: int) -> Chat:
        """A conversation under this policy, in a context of its own."""
        context = self._new_context(policy, room, undo_bytes)
        return Chat(self.runtime, context, "prepare" if policy.prepared else "exact")

    def items(self, policy: Policy, picture: Picture, question: str) -> tuple[list[Item], list[Item], float]:
        """The prompt up to the picture's end, the rest, and the seconds that the encoder took for this picture."""
        # one encoding serves all shares: what libmtmd would choose is chosen here, where no row has to stay
        if policy.profile and (policy.chooses_input or (policy.intake.input_keep < 1 and self._own_encoder.is_mrope)):
            whole = dataclasses.replace(
                policy, profile=dataclasses.replace(policy.profile, input_keep=1.0), selector=None
            )
            head, tail, seconds = self.items(whole, picture, question)
            start = time.perf_counter()
            salience = self._watched().received(picture) if policy.selector in BY_ENCODER else None
            head = choose_input(policy, self.runtime, self.encoder(policy).tokens(picture), head, tail, salience)
            return head, tail, seconds + time.perf_counter() - start
        prompt = self.runtime.prompt(picture, question, self.encoder(policy))
        key = prompt.encoded.digest, policy.max_tokens, policy.weights  # a digest knows of the rest
        if prompt.encode_sec is not None:
            self._encode_s[key] = prompt.encode_sec
        return prompt.head, prompt.tail, self._encode_s[key]

    def _twig(self, policy: Policy) -> TwigScores:
        assert policy.twig
        if policy.twig not in self._twigs:
            self._twigs[policy.twig] = TwigScores(self.runtime, policy.twig.path)
        return self._twigs[policy.twig]

    def _watched(self) -> EncoderAttention:
        if self._attention is None:
            self._attention = EncoderAttention(self.runtime)
        return self._attention

    def ask(self, policy: Policy, picture: Picture, question: str, teacher: PolicyAnswer | None = None) -> PolicyAnswer:
        """A greedy answer; with a teacher also the KL of its first tokens, each given the teacher's ones before it."""
        head, tail, encode_s = self.items(policy, picture, question)
        context = self.context(policy, n_cells(head) + len(tail))
        start = time.perf_counter()
        context.evaluate(head, output=False)
        if policy.prepared:
            context.prepare()
        llama_h.llama_synchronize(context.pointer)
        enter = time.perf_counter()
        if policy.twig:
            self._twig(policy).read([*head, *tail], self.encoder(policy))
        with raising_what_failed(self._choosers):
            context.evaluate(tail, output=True)
        logits = [self.runtime.logits(context)]
        end = time.perf_counter()
        stats = context.stats()
        with self._fewer_bits(policy, context):
            kl = self._follow(context, logits, teacher) if teacher else None
            tokens = self._generate(context, logits, teacher, len(head) + len(tail))
        chunks = [item for item in head if isinstance(item, Chunk)]
        n_visual, n_patches = n_cells(chunks), sum(chunk.n_patches for chunk in chunks)
        n_deep = stats.get("n_deep", n_visual)
        least = min([n_deep, *stats.get("n_further", ())])
        return PolicyAnswer(
            tokens, self._text(tokens), np.stack(logits[: self.kl_tokens]), kl, encode_s, enter - start, end - enter,
            self._flops(policy, head, tail, stats), n_patches, n_visual, stats.get("n_kept", n_visual), n_deep,
            "" if least < n_patches or policy.intake.encoder_keep < 1 else _why_whole(policy, stats),
        )  # fmt: skip

    @contextlib.contextmanager
    def _fewer_bits(self, policy: Policy, context: Context) -> Iterator[None]:
        """What is decoded in here sees visual tokens as the policy keeps them. The first token was chosen before."""
        where = rewrite(context, policy.bits) if policy.bits else None
        mapped = self._ranges.get(policy)
        if not mapped:
            yield
            return
        mapped.where = where
        try:
            yield
        finally:
            mapped.where = None
        if mapped.error:
            raise mapped.error

    def _follow(self, context: Context, logits: list[Floats], teacher: PolicyAnswer) -> float:
        """Evaluate the teacher's tokens; `logits` gets the rows at its first ones."""
        for token in teacher.tokens[: len(teacher.logits) - 1]:
            context.evaluate([token], output=True)
            logits.append(self.runtime.logits(context))
        return entropy.kl(teacher.logits, np.stack(logits))

    def _generate(
        self, context: Context, logits: list[Floats], teacher: PolicyAnswer | None, n_prompt: int
    ) -> list[int]:
        """From what is there: rows that follow the teacher serve as long as the answer is the teacher's."""
        tokens: list[int] = []
        while len(tokens) < self.max_tokens:
            at = len(tokens)
            if at >= len(logits):
                context.truncate(n_prompt + at - 1)  # behind it are the teacher's own
                if len(context.items) != n_prompt + at - 1:
                    raise RunError(
                        "This model cannot take tokens back, as KL needs it",
                        hint="give {kl_tokens}",
                        settings={"kl_tokens": 1},
                    )
                context.evaluate(tokens[-1:], output=True)
                logits.append(self.runtime.logits(context))
            token = int(logits[at].argmax())
            if self.runtime.is_end(token):
                break
            tokens.append(token)
            if teacher and at + 1 < len(logits) and teacher.tokens[at] != token:
                del logits[at + 1 :]
        return tokens

    def _flops(self, policy: Policy, head: Sequence[Item], tail: Sequence[Item], stats: dict[str, Any]) -> float:
        """Of the language model for the whole prompt. The statistics mostly start with the picture."""
        if not stats.get("flops_spent"):  # nothing is left out of the language model
            chosen = sum(item.flops for item in head if isinstance(item, ChosenChunk))
            return self.flops(n_cells(head) + len(tail)) + chosen
        if policy.holds_text:
            return float(stats["flops_spent"])
        first = next(at for at, item in enumerate(head) if isinstance(item, Chunk))
        return float(stats["flops_spent"]) + self.flops(first) - self.flops(0)

    def flops(self, n_tokens: int) -> float:
        """Of the unpruned model for so many tokens and one output."""
        return self.picture_flops(None, 0, n_tokens)

    def picture_flops(self, profile: Profile | None, n_visual: int, n_text: int, n_before: int = 0) -> float:
        """Of a picture and the text after it, under a profile."""
        return self.runtime.flops(profile, n_before, n_visual, n_text)[1]

    def _text(self, tokens: Sequence[int]) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return "".join(decoder.decode(self.model.piece(token)) for token in tokens) + decoder.decode(b"", final=True)


def _why_whole(policy: Policy, stats: dict[str, Any]) -> str:
    if not policy.profile:
        return "unpruned"
    if not stats:
        return "off"
    if policy.profile.narrows and stats["outcome"] == "pruned":
        return ""  # all go on, and less of them is computed
    return str(stats["reason"]) if stats["outcome"] != "pruned" else "every token was kept"

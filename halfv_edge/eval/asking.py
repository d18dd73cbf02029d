"""Questions put to one model under several policies, each with a context of its own."""

from __future__ import annotations

import codecs
import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halfv_edge import libs
from halfv_edge.calibrate import entropy
from halfv_edge.conversation import Chat
from halfv_edge.encoder import Chunk, Encoder
from halfv_edge.engine import Model
from halfv_edge.errors import HalfvError, RunError
from halfv_edge.images import Picture
from halfv_edge.kv import Context, Item, n_cells
from halfv_edge.policies import Policy
from halfv_edge.profile import Profile

llama_cpp = libs.load()

import halfv_cpp  # noqa: E402
from halfv_cpp import halfv_h  # noqa: E402

MARK = "<|picture-of-the-evaluation|>"
BIG = (2048, 2048)  # pixels: more than any limit on tokens lets through
CTX_STEP = 256


@dataclass(frozen=True, slots=True)
class Given:
    """What a model said to a question: its tokens, the logits that chose the first of them, and what it took."""

    tokens: list[int]
    text: str
    logits: np.ndarray
    kl: float | None  # from the teacher, mean over the teacher's first tokens
    encode_s: float
    ahead_s: float  # text before the picture, the picture, and preparing
    enter_s: float  # from the question to the first token
    flops: float
    n_visual: int
    n_kept: int
    n_deep: int
    unpruned: str  # why, "" when it was pruned


class Asker:
    """Runs a model under policies. Close it before the model."""

    def __init__(self, model: Model, max_tokens: int, kl_tokens: int, n_ctx: int | None):
        self.model = model
        self.max_tokens = max_tokens
        self.kl_tokens = kl_tokens
        self.n_ctx = n_ctx
        self._contexts: dict[Policy, Context] = {}
        self._encoders: dict[int | None, Encoder] = {None: model.encoder}
        self._encode_s: dict[tuple[str, int | None], float] = {}
        model.encoder._cache.clear()  # so that the encoding of every picture is timed

    def close(self) -> None:
        for context in self._contexts.values():
            context.close()
        for limit, encoder in self._encoders.items():
            if limit is not None:
                encoder.close()

    def encoder(self, policy: Policy) -> Encoder:
        """The model's own, or one that makes pictures smaller."""
        limit = policy.max_tokens
        if limit not in self._encoders:
            own, options = self.model.encoder, self.model._options
            encoder = Encoder.load(
                own.path, self.model.pointer, self.model.path, use_gpu=True, n_threads=options["n_threads"],
                flash_attn=options["flash_attn"], image_max_tokens=limit, cache_bytes=own.cache_bytes,
            )  # fmt: skip
            self._encoders[limit] = encoder
            from PIL import Image

            n_tokens = n_cells(encoder.tokens(Picture("A large picture", Image.new("RGB", BIG))).chunks)
            if n_tokens > limit:
                raise HalfvError(
                    f"The policy {policy.name} has no effect: {own.path.name} gives {n_tokens} tokens whatever the "
                    "size of a picture, so nothing is saved by a smaller one."
                )
        return self._encoders[limit]

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
        context = self._contexts[policy] = self._new_context(policy.profile, room, topup_bytes=0)
        context.encoder = self.encoder(policy)
        return context

    def _new_context(self, profile: Profile | None, room: int, topup_bytes: int) -> Context:
        model = self.model
        if model._free:  # made with another profile
            model._free.close()
            model._free = None
        if halfv_cpp.halfv_model_supported(model.pointer):
            halfv_cpp.set_model_profile(model.pointer, profile.to_c() if profile else None)
        model._options["n_ctx"] = max(self.n_ctx or 0, -(-room // CTX_STEP) * CTX_STEP)
        context = model._context()
        halfv_h.halfv_set_topup_bytes(context.pointer, topup_bytes)
        return context

    def chat(self, policy: Policy, room: int, topup_bytes: int) -> Chat:
        """A conversation under this policy, in a context of its own."""
        context = self._new_context(policy.profile, room, topup_bytes)
        return Chat(self.model, context, None, "prepare" if policy.prepared else "exact")

    def items(self, policy: Policy, picture: Picture, question: str) -> tuple[list[Item], list[Item], float]:
        """The prompt up to the picture's end, the rest, and the seconds that the encoder took for this picture."""
        model, encoder = self.model, self.encoder(policy)
        before, mark, after = model.template.render([{"role": "user", "content": MARK + question}]).partition(MARK)
        if not mark:
            raise HalfvError("The model's chat template drops the picture, so nothing can be asked about it.")
        encoded = encoder.tokens(picture)
        seconds = encoder.encode(encoded)
        key = encoded.digest, policy.max_tokens
        if seconds is not None:
            self._encode_s[key] = seconds
        bos = [llama_cpp.llama_vocab_bos(model.vocab)] if llama_cpp.llama_vocab_get_add_bos(model.vocab) else []
        head = [*bos, *(model.tokenize(before) if before else []), *encoded.items]
        tail = model.tokenize(after)
        if not tail:
            raise HalfvError("The chat template ends with the picture, so there is nothing to answer to.")
        return head, tail, self._encode_s[key]

    def ask(self, policy: Policy, picture: Picture, question: str, teacher: Given | None = None) -> Given:
        """A greedy answer; with a teacher also the KL of its first tokens, each given the teacher's ones before it."""
        head, tail, encode_s = self.items(policy, picture, question)
        context = self.context(policy, n_cells(head) + len(tail))
        start = time.perf_counter()
        context.evaluate(head, output=False)
        if policy.prepared:
            context.prepare()
        llama_cpp.llama_synchronize(context.pointer)
        enter = time.perf_counter()
        context.evaluate(tail, output=True)
        logits = [self._logits(context)]
        end = time.perf_counter()
        stats = context.stats()
        kl = self._follow(context, logits, teacher) if teacher else None
        tokens = self._generate(context, logits, teacher, len(head) + len(tail))
        n_visual = n_cells([item for item in head if isinstance(item, Chunk)])
        return Given(
            tokens, self._text(tokens), np.stack(logits[: self.kl_tokens]), kl, encode_s, enter - start, end - enter,
            self._flops(head, tail, stats), n_visual, stats.get("n_kept", n_visual), stats.get("n_deep", n_visual),
            _why_whole(policy, stats),
        )  # fmt: skip

    def _follow(self, context: Context, logits: list[np.ndarray], teacher: Given) -> float:
        """Evaluate the teacher's tokens; `logits` gets the rows at its first ones."""
        for token in teacher.tokens[: len(teacher.logits) - 1]:
            context.evaluate([token], output=True)
            logits.append(self._logits(context))
        return entropy.kl(teacher.logits, np.stack(logits))

    def _generate(self, context: Context, logits: list[np.ndarray], teacher: Given | None, n_prompt: int) -> list[int]:
        """From what is there: rows that follow the teacher serve as long as the answer is the teacher's."""
        tokens: list[int] = []
        while len(tokens) < self.max_tokens:
            at = len(tokens)
            if at >= len(logits):
                context.truncate(n_prompt + at - 1)  # behind it are the teacher's own
                if len(context.items) != n_prompt + at - 1:
                    raise RunError("This model cannot take tokens back, as KL needs it: give --kl-tokens 1.")
                context.evaluate(tokens[-1:], output=True)
                logits.append(self._logits(context))
            token = int(logits[at].argmax())
            if llama_cpp.llama_vocab_is_eog(self.model.vocab, token):
                break
            tokens.append(token)
            if teacher and at + 1 < len(logits) and teacher.tokens[at] != token:
                del logits[at + 1 :]
        return tokens

    def _flops(self, head: Sequence[Item], tail: Sequence[Item], stats: dict) -> float:
        """Of the language model for the whole prompt. The statistics start with the picture."""
        if not stats:
            return self.flops(n_cells(head) + len(tail))
        first = next(at for at, item in enumerate(head) if isinstance(item, Chunk))
        return stats["flops_spent"] + self.flops(first) - self.flops(0)

    def flops(self, n_tokens: int) -> float:
        """Of the unpruned model for so many tokens and one output."""
        dense, spent = ctypes.c_double(), ctypes.c_double()
        profile = Profile.default(self.model.n_layer).to_c()
        halfv_cpp.check(
            halfv_h.halfv_flops(
                self.model.pointer, ctypes.byref(profile), 0, 0, n_tokens, ctypes.byref(dense), ctypes.byref(spent)
            )
        )
        return dense.value

    def _logits(self, context: Context) -> np.ndarray:
        n_vocab = llama_cpp.llama_vocab_n_tokens(self.model.vocab)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context.pointer, -1), (n_vocab,)).copy()

    def _text(self, tokens: Sequence[int]) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return "".join(decoder.decode(self.model.piece(token)) for token in tokens) + decoder.decode(b"", final=True)


def _why_whole(policy: Policy, stats: dict) -> str:
    if not policy.profile:
        return "unpruned"
    if not stats:
        return "off"
    return stats["reason"] if stats["outcome"] != "pruned" else ""

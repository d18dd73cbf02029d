"""A twig beside the model that it grew on: it reads the same prompts, and drafts what that model may say."""

from __future__ import annotations

import os
from collections.abc import Sequence

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h

from halfv_edge.engine.context import Context, Item
from halfv_edge.engine.encoder import Encoder
from halfv_edge.engine.loading import load_weights, make_context
from halfv_edge.engine.options import ModelOptions
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.twig import AFTER
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile

MOST_DRAFTED = 5  # before the model checks them, as TwigVLM has it
LEAST_LIKELY = 0.6  # of a draft, likewise


class Twig:
    """A twig's weights. Close it after its contexts."""

    def __init__(
        self, path: str | os.PathLike[str], base: ModelFile, model: int, options: ModelOptions, n_threads: int
    ):
        """`model`: the llama_model of `base`, on which it has to have grown."""
        about = ModelFile.read(path)
        after = about.metadata.value(AFTER)
        if not isinstance(after, int):
            raise HalfVError(f"{about.path} is not a twig, as it has no {AFTER}: `halfv twig` makes one.")
        if about.architecture != base.architecture:
            raise HalfVError(
                f"{about.path} is a twig of a {about.architecture} model, and {base.path.name} is {base.architecture}."
            )
        self.path, self.after, self.n_layer = about.path, after, about.n_layer
        self._options, self._n_threads = options, n_threads
        self.pointer = load_weights(about.path, options, options.repack)
        try:
            self._check_fits(base, model)
        except BaseException:
            self.close()
            raise
        self.n_vocab: int = llama_h.llama_vocab_n_tokens(llama_h.llama_model_get_vocab(self.pointer))

    def _check_fits(self, base: ModelFile, model: int) -> None:
        for what, mine, its in (
            ("floats per token", llama_h.llama_model_n_embd(self.pointer), llama_h.llama_model_n_embd(model)),
            ("tokens in its vocabulary", *(_n_vocab(each) for each in (self.pointer, model))),
        ):
            if mine != its:
                raise HalfVError(
                    f"{self.path} is not a twig of {base.path.name}: it has {mine} {what}, and that model has {its}."
                )

    def close(self) -> None:
        if self.pointer:
            llama_h.llama_model_free(self.pointer)
            self.pointer = 0

    def context(self, encoder: Encoder, n_ctx: int, *, observable: bool = False) -> Context:
        """An empty one, which prunes nothing. observable: by halfv_observe."""
        profile = Profile.default(self.n_layer).to_c() if observable else None
        halfv_cpp.set_model_profile(self.pointer, profile)
        return Context(make_context(self.pointer, self.path, self._options, encoder, self._n_threads, n_ctx), encoder)


def _n_vocab(model: int) -> int:
    count: int = llama_h.llama_vocab_n_tokens(llama_h.llama_model_get_vocab(model))
    return count


class Drafter:
    """Drafts for one conversation, in a context of its own. The model's lock is held by whoever calls it."""

    def __init__(self, twig: Twig, n_ctx: int):
        self._twig = twig
        self._n_ctx = n_ctx
        self._context: Context | None = None  # made when it is needed

    def close(self) -> None:
        if self._context:
            self._context.close()
            self._context = None

    def draft(self, asking: Context, last: int, most: int) -> list[int]:
        """What may follow the items of a context and a token after them, as long as each is likely."""
        if most < 1:
            return []
        if self._context is None:
            self._context = self._twig.context(asking.encoder, self._n_ctx)
        self._context.stop_with(asking)
        try:
            return self._continued(self._context, [*asking.items, last], min(most, MOST_DRAFTED))
        except BaseException:  # what a batch that failed left there nobody knows
            self.close()
            raise

    def _continued(self, context: Context, items: Sequence[Item], most: int) -> list[int]:
        context.truncate(min(context.common(items), len(items) - 1))
        context.evaluate(items[len(context.items) :], output=True)
        drafts: list[int] = []
        while True:
            pointer = llama_h.llama_get_logits_ith(context.pointer, -1)
            logits = np.ctypeslib.as_array(pointer, (self._twig.n_vocab,))
            token = int(logits.argmax())
            if 1 / np.exp(logits - logits[token]).sum() < LEAST_LIKELY:
                return drafts
            drafts.append(token)
            if len(drafts) == most:
                return drafts
            context.evaluate([token], output=True)

"""How the next token is chosen: llama.cpp's own samplers, grammar and JSON schema included."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from halfv_cpp import llama_h

from halfv_edge.engine import json_schema
from halfv_edge.errors import HalfVError

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Settings of an answer. `temperature` 0 always takes the likeliest token; `seed` None is a new one every time."""

    temperature: float = 0.2  # as llama-mtmd-cli: pictures are described better than at 0.8
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    grammar: str | None = None  # GBNF
    json_schema: Mapping[str, Any] | str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, math.inf), ("top_p", 0, 1), ("min_p", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high or not math.isfinite(value):
                rule = f"between {low} and {high}" if high < math.inf else f"at least {low}"
                raise HalfVError(parameter=name, value=value, rule=rule)
        if self.top_k < 0:
            raise HalfVError(parameter="top_k", value=self.top_k, rule="0 (all tokens) or more")
        if self.seed is not None and not 0 <= self.seed < 0xFFFFFFFF:
            raise HalfVError(parameter="seed", value=self.seed, rule="from 0 to 4294967294")
        if self.grammar is not None and self.json_schema is not None:
            both = {"grammar": None, "json_schema": None}
            raise HalfVError(
                "{grammar} and {json_schema} were both given", hint="an answer follows one of them", settings=both
            )

    def gbnf(self) -> str | None:
        """The grammar in force, made from the schema when that is what was given."""
        if self.json_schema is None:
            return self.grammar
        return json_schema.grammar(self.json_schema)


class Sampler:
    """llama.cpp's samplers for one answer. As in llama.cpp a grammar is asked about the token that the others choose,
    and only when it refuses that one about all of them: that is cheaper, and leaves most answers as they would be."""

    def __init__(self, settings: AnswerOptions, vocab: int):
        self._n_vocab = llama_h.llama_vocab_n_tokens(vocab)
        self._grammar = None
        text = settings.gbnf()
        if text is not None:
            self._grammar = llama_h.llama_sampler_init_grammar(vocab, text.encode(), b"root")
            if not self._grammar:
                if settings.json_schema is not None:
                    raise HalfVError(
                        "The JSON schema cannot be used: llama.cpp does not take the grammar made from it."
                    )
                raise HalfVError("The grammar cannot be parsed: it must be GBNF with a rule named root.")
        self._chain = llama_h.llama_sampler_chain_init(llama_h.llama_sampler_chain_default_params())
        for part in _parts(settings):
            llama_h.llama_sampler_chain_add(self._chain, part)

    def sample(self, ctx: int) -> int | None:
        """The next token after the last output, None when the grammar leaves none."""
        token = llama_h.llama_sampler_sample(self._chain, ctx, -1)
        if self._grammar is None:
            return token
        if not math.isfinite(self._allowed(np.array([token]), np.zeros(1))["logit"][0]):
            logits = llama_h.llama_get_logits_ith(ctx, -1)
            logits = np.ctypeslib.as_array(logits, shape=(self._n_vocab,))
            candidates = self._allowed(np.arange(self._n_vocab), logits)
            candidates = candidates[np.isfinite(candidates["logit"])]
            if not len(candidates):
                return None
            array = _array_of(candidates)
            llama_h.llama_sampler_apply(self._chain, ctypes.byref(array))
            token = array.data[array.selected].id
        llama_h.llama_sampler_accept(self._grammar, token)
        return token

    def _allowed(self, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Candidates with the logits of those that the grammar refuses at minus infinity."""
        candidates = np.zeros(len(tokens), CANDIDATE)
        candidates["id"], candidates["logit"] = tokens, logits
        array = _array_of(candidates)
        llama_h.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return candidates

    def close(self) -> None:
        for part in (self._chain, self._grammar):
            if part:
                llama_h.llama_sampler_free(part)
        self._chain = self._grammar = None


def _parts(settings: AnswerOptions) -> Iterator[int]:
    """In the order of llama.cpp's tools."""
    if settings.temperature == 0:
        yield llama_h.llama_sampler_init_greedy()
        return
    if settings.top_k:
        yield llama_h.llama_sampler_init_top_k(settings.top_k)
    if settings.top_p < 1:
        yield llama_h.llama_sampler_init_top_p(settings.top_p, 1)
    if settings.min_p > 0:
        yield llama_h.llama_sampler_init_min_p(settings.min_p, 1)
    yield llama_h.llama_sampler_init_temp(settings.temperature)
    yield llama_h.llama_sampler_init_dist(llama_h.LLAMA_DEFAULT_SEED if settings.seed is None else settings.seed)


def _array_of(candidates: np.ndarray) -> Any:
    """llama_token_data_array over the candidates' own memory."""
    data = candidates.ctypes.data_as(ctypes.POINTER(llama_h.llama_token_data))
    return llama_h.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)

"""How the next token is chosen: llama.cpp's own samplers, grammar and JSON schema included."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from halfv_cpp import llama_h

from halfv_edge.engine import json_schema
from halfv_edge.engine.options import AnswerOptions
from halfv_edge.errors import HalfVError

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def grammar_of(options: AnswerOptions) -> str | None:
    """The grammar in force, made from the schema when that is what was given."""
    if options.json_schema is None:
        return options.grammar
    return json_schema.grammar(options.json_schema)


class Sampler:
    """llama.cpp's samplers for one answer. As in llama.cpp a grammar is asked about the token that the others choose,
    and only when it refuses that one about all of them: that is cheaper, and leaves most answers as they would be."""

    def __init__(self, options: AnswerOptions, vocab: int):
        self._n_vocab = llama_h.llama_vocab_n_tokens(vocab)
        self._grammar = 0
        text = grammar_of(options)
        if text is not None:
            raw = text.encode("utf-8", "replace")  # half a surrogate pair is in no vocabulary
            self._grammar = (b"\0" not in raw and llama_h.llama_sampler_init_grammar(vocab, raw, b"root")) or 0
            if not self._grammar:
                if options.json_schema is not None:
                    raise HalfVError(
                        "The JSON schema cannot be used: llama.cpp does not take the grammar made from it."
                    )
                raise HalfVError("The grammar cannot be parsed: it must be GBNF with a rule named root.")
        self._chain = llama_h.llama_sampler_chain_init(llama_h.llama_sampler_chain_default_params())
        for part in _parts(options):
            llama_h.llama_sampler_chain_add(self._chain, part)

    def sample(self, ctx: int, row: int = -1) -> int | None:
        """The next token after an output of the last batch, None when the grammar leaves none."""
        token: int = llama_h.llama_sampler_sample(self._chain, ctx, row)
        if not self._grammar:
            return token
        if not math.isfinite(self._allowed(np.array([token]), np.zeros(1))["logit"][0]):
            pointer = llama_h.llama_get_logits_ith(ctx, row)
            logits = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
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
        self._chain = self._grammar = 0

    def __del__(self) -> None:
        if hasattr(self, "_chain"):  # else its making failed
            self.close()


def _parts(options: AnswerOptions) -> Iterator[int]:
    """In the order of llama.cpp's tools."""
    if options.temperature == 0:
        yield llama_h.llama_sampler_init_greedy()
        return
    if options.top_k:
        yield llama_h.llama_sampler_init_top_k(options.top_k)
    if options.top_p < 1:
        yield llama_h.llama_sampler_init_top_p(options.top_p, 1)
    if options.min_p > 0:
        yield llama_h.llama_sampler_init_min_p(options.min_p, 1)
    yield llama_h.llama_sampler_init_temp(options.temperature)
    yield llama_h.llama_sampler_init_dist(llama_h.LLAMA_DEFAULT_SEED if options.seed is None else options.seed)


def _array_of(candidates: np.ndarray) -> Any:
    """llama_token_data_array over the candidates' own memory."""
    data = candidates.ctypes.data_as(ctypes.POINTER(llama_h.llama_token_data))
    return llama_h.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)

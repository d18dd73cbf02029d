"""How the next token is chosen: llama.cpp's own samplers, grammar and JSON schema included."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfv_edge import libs
from halfv_edge.errors import HalfvError

llama_cpp = libs.load()


@dataclass(frozen=True, slots=True)
class Sampling:
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
                raise HalfvError(f"{name} = {value!r} is not valid: it must be {rule}.")
        if self.top_k < 0:
            raise HalfvError(f"top_k = {self.top_k!r} is not valid: it must be 0 (all tokens) or more.")
        if self.seed is not None and not 0 <= self.seed < 0xFFFFFFFF:
            raise HalfvError(f"seed = {self.seed!r} is not valid: it must be from 0 to 4294967294.")
        if self.grammar is not None and self.json_schema is not None:
            raise HalfvError("grammar and json_schema were both given: an answer follows one of them.")

    def gbnf(self) -> str | None:
        """The grammar in force, made from the schema when that is what was given."""
        if self.json_schema is None:
            return self.grammar
        from llama_cpp.llama_grammar import json_schema_to_gbnf

        text = self.json_schema if isinstance(self.json_schema, str) else json.dumps(self.json_schema)
        try:
            return json_schema_to_gbnf(text)
        except Exception as error:  # its converter raises what it likes
            raise HalfvError(f"The JSON schema cannot be used: {error}.") from error


class Sampler:
    """A chain of llama.cpp's samplers for one answer."""

    def __init__(self, settings: Sampling, vocab: int):
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        try:
            for part in self._parts(settings, vocab):
                llama_cpp.llama_sampler_chain_add(self._chain, part)
        except HalfvError:
            self.close()
            raise

    @staticmethod
    def _parts(settings: Sampling, vocab: int) -> Any:
        grammar = settings.gbnf()
        if grammar is not None:
            part = llama_cpp.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
            if not part:
                raise HalfvError("The grammar cannot be parsed: it must be GBNF with a rule named root.")
            yield part
        if settings.temperature == 0:
            yield llama_cpp.llama_sampler_init_greedy()
            return
        if settings.top_k:
            yield llama_cpp.llama_sampler_init_top_k(settings.top_k)
        if settings.top_p < 1:
            yield llama_cpp.llama_sampler_init_top_p(settings.top_p, 1)
        if settings.min_p > 0:
            yield llama_cpp.llama_sampler_init_min_p(settings.min_p, 1)
        yield llama_cpp.llama_sampler_init_temp(settings.temperature)
        seed = llama_cpp.LLAMA_DEFAULT_SEED if settings.seed is None else settings.seed
        yield llama_cpp.llama_sampler_init_dist(seed)

    def sample(self, ctx: int) -> int:
        """The next token after the last output; the chain takes note of it."""
        return llama_cpp.llama_sampler_sample(self._chain, ctx, -1)

    def close(self) -> None:
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None

"""Llama's tokenizer from tokenizer.json alone, which is all that newer transformers save.

The pinned converter gives every token the same score, and llama.cpp then joins pieces from left to right instead of by
rank; and it ends the vocabulary where the tokenizer does, though the model has more rows. Both are mended here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import gguf

LEAST = -1e6  # below any rank


class LlamaVocabulary(gguf.LlamaHfVocab):
    n_rows = 0  # of the model's embedding
    vocab_size: int

    def __init__(self, base_path: Path):
        super().__init__(base_path)
        merges = json.loads(self.fname_tokenizer.read_bytes())["model"]["merges"]
        joined = ("".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in merges)
        ids = self.tokenizer.get_vocab()
        self.ranks: dict[int, float] = {}
        for rank, token in enumerate(joined):
            self.ranks.setdefault(ids[token], -float(rank))
        self.n_tokens, self.vocab_size = self.vocab_size, max(self.vocab_size, self.n_rows)

    def get_token_score(self, token_id: int) -> float:
        return self.ranks.get(token_id, LEAST)

    def all_tokens(self) -> Iterable[tuple[bytes, float, gguf.TokenType]]:
        yield from super().all_tokens()
        for id_ in range(self.n_tokens, self.vocab_size):
            yield f"[PAD{id_}]".encode(), LEAST, gguf.TokenType.UNUSED

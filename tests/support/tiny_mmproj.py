"""Random vision encoders in the sizes that tests use."""

from __future__ import annotations

from pathlib import Path

from halfv_edge.testing.random_mmproj import write_mmproj

KINDS = ("llava", "llava-next", "qwen2vl")
TILES = (140, 280, 280, 140, 280, 280)  # width, height of each resolution that llava-next may choose


def make_tiny_mmproj(path: str | Path, kind: str, *, n_embd: int, seed: int = 0) -> Path:
    """An encoder of 100 tokens, in tiles for llava-next; for qwen2vl of any size."""
    return write_mmproj(path, kind, n_embd=n_embd, seed=seed, pinpoints=TILES)

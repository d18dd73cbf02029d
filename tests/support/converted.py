"""Tiny checkpoints with their GGUFs, each made once per session."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

from halfv_convert import convert

from tests.support import tiny_families


class Pair(NamedTuple):
    model: Any  # of transformers
    folder: Path
    text: Path
    vision: Path


def convert_tiny(family: str, root: Path, n_layer: int | None = None) -> Pair:
    """All in float32, and without a profile."""
    return _convert_tiny(family, root, n_layer)  # a cache knows calls by how their arguments are given


@functools.cache
def _convert_tiny(family: str, root: Path, n_layer: int | None) -> Pair:
    name = family if n_layer is None else f"{family}-{n_layer}"
    folder = root / "checkpoints" / name
    model = tiny_families.make(family, folder, text_changes={"num_hidden_layers": n_layer} if n_layer else None)
    out = root / f"{name}.gguf"
    pre = tokenizer_pre(family)
    done = convert(folder, out, type="f32", mmproj_type="f32", with_profile=False, tokenizer_pre=pre, name="tiny")
    return Pair(model, folder, done.model, done.mmproj)


def tokenizer_pre(family: str) -> str | None:
    """llama.cpp knows published tokenizers by their fingerprints, and ours are not."""
    return None if family.startswith("llava") else "qwen2"

"""Model shapes to measure, with their profiles, and random-weight files of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # tiny_models, client


@dataclasses.dataclass(frozen=True)
class Shape:
    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    tokens: tuple[int, ...]  # visual tokens to measure unless told otherwise
    profile: dict[str, Any]
    head_dim: int = 128

    def flops(self, n_tokens: int) -> float:
        """Of the layers for the first n_tokens, counted as halfv_stats does."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        per_token = 2 * self.n_embd * (2 * q + 2 * kv + 3 * self.n_ff)
        per_pair = 4 * q
        return self.n_layer * (n_tokens * per_token + n_tokens * (n_tokens + 1) / 2 * per_pair)


def _qwen(ssr_layer: int) -> dict[str, Any]:
    """The published Qwen2.5-VL-7B preset; ssr.layer at three quarters of the depth."""
    return {
        "ivr.layer": 2,
        "ivr.keep": 0.25,
        "ivr.anchors": 0.1,
        "ssr.layer": ssr_layer,
        "ssr.update": 0.05,
        "ssr.rest": "dropped",
    }


LLAVA = {
    "ivr.layer": 3,
    "ivr.keep": 0.5,
    "ivr.anchors": 0.2,
    "ssr.layer": 15,
    "ssr.update": 0.0,
    "ssr.rest": "frozen",
}
ARCHS = ("llama", "qwen2", "qwen3", "qwen2vl", "qwen3vl")
STEPS = (576, 1024, 2048, 4096)

SHAPES = {
    # Qwen2.5-VL-7B's depth, a width that two cores can run; the narrow FFN gives attention a share as in longer prompts
    "scaled": Shape("qwen2vl", 28, 1024, 8, 2, 2816, 32768, STEPS, _qwen(21)),
    "qwen2.5-vl-3b": Shape("qwen2vl", 36, 2048, 16, 2, 11008, 151936, (1024,), _qwen(27)),
    "qwen2.5-vl-7b": Shape("qwen2vl", 28, 3584, 28, 4, 18944, 151936, STEPS, _qwen(21)),
    "llava-1.5-7b": Shape("llama", 32, 4096, 32, 32, 11008, 32064, (576,), LLAVA),
    # for tests of the benchmark itself
    "tiny": Shape("qwen2vl", 8, 128, 4, 2, 256, 512, (256,), _qwen(6), head_dim=32),
}


def model_file(name: str, shape: Shape, ftype: str, folder: Path) -> Path:
    """The file of a shape, written when it is not there yet. Weights are random: only speed can be measured with it."""
    dims = dataclasses.asdict(shape)
    del dims["tokens"]
    # an older file of another shape or profile must not be taken for it
    mark = hashlib.sha256(json.dumps(dims, sort_keys=True).encode()).hexdigest()[:8]
    arch, profile = dims.pop("arch"), dims.pop("profile")
    path = folder / f"{name}-{arch}-{ftype}-{mark}.gguf"
    if not path.is_file():
        from tiny_models import make_tiny

        print(f"writing {path} ...", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        make_tiny(path, arch, ftype=ftype, profile=profile, **dims)
    return path


def grid(n_tokens: int) -> tuple[int, int]:
    """Rows and columns of a picture of n_tokens, as square as they can be."""
    rows = next(rows for rows in range(int(n_tokens**0.5), 0, -1) if n_tokens % rows == 0)
    return rows, n_tokens // rows

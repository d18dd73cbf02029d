"""Shapes of models that can be measured without their weights: language model, vision encoder and profile."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from halfv_edge.errors import HalfVError


@dataclasses.dataclass(frozen=True)
class Vision:
    kind: str
    n_vision: int
    n_layer: int
    n_head: int
    n_ff: int
    image_size: int
    pixels_per_token: int = 0  # along a side, where the encoder takes any size; 0: it does not
    pinpoints: tuple[int, ...] = ()
    patch: int = 14

    def size(self, n_tokens: int) -> tuple[int, int]:
        """Width and height of a picture that gets n_tokens, as square as it can be."""
        if not self.pixels_per_token:
            return (2 * self.image_size, 2 * self.image_size)
        rows, columns = grid(n_tokens)
        return columns * self.pixels_per_token, rows * self.pixels_per_token


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
    vision: Vision
    head_dim: int = 128
    n_deepstack_layers: int = 3  # of qwen3vl


def _qwen(ssr_layer: int) -> dict[str, Any]:
    """The published Qwen2.5-VL-7B preset; ssr.layer at three quarters of the depth."""
    return _profile(2, 0.25, 0.1, ssr_layer, 0.05, "dropped") | {"pixel.tau": 0.0}


def _profile(ivr: int, keep: float, anchors: float, ssr: int, update: float, rest: str) -> dict[str, Any]:
    return {
        "ivr.layer": ivr,
        "ivr.keep": keep,
        "ivr.anchors": anchors,
        "ssr.layer": ssr,
        "ssr.update": update,
        "ssr.rest": rest,
    }


def grid(n_tokens: int) -> tuple[int, int]:
    """Rows and columns of a picture of n_tokens, as square as they can be."""
    rows = next(rows for rows in range(int(n_tokens**0.5), 0, -1) if n_tokens % rows == 0)
    return rows, n_tokens // rows


ARCHS = ("llama", "qwen2", "qwen3", "qwen2vl", "qwen3vl")
STEPS = (576, 1024, 2048, 4096)

LLAVA = _profile(3, 0.5, 0.2, 15, 0.0, "frozen")
GEMMA3 = _profile(3, 0.5, 0.2, 26, 0.05, "dropped")  # not published: a pruned run of the usual shares
LLAVA_NEXT = _profile(2, 0.5, 0.1, 16, 0.0, "frozen")

QWEN35_FIRST = {"ivr.layer": 4}  # the first of its layers that has attention is the fourth

QWEN_VIT = Vision("qwen2.5vl", 1280, 32, 16, 3420, 560, pixels_per_token=28)
QWEN3_VIT = Vision("qwen3vl", 1152, 27, 16, 4304, 768, pixels_per_token=32, patch=16)
QWEN35_VIT = dataclasses.replace(QWEN3_VIT, kind="qwen3.5vl")  # without what Qwen3-VL's layers add on the way
SIGLIP = Vision("gemma3", 1152, 27, 16, 4304, 896)
CLIP_L = Vision("llava", 1024, 23, 16, 4096, 336)  # the last of 24 layers is not used
CLIP_L_TILES = dataclasses.replace(
    CLIP_L, kind="llava-next", pinpoints=(336, 672, 672, 336, 672, 672, 1008, 336, 336, 1008)
)

SHAPES = {
    # Qwen2.5-VL-7B's depth, a width that two cores can run; the narrow FFN gives attention a share as in longer prompts
    "scaled": Shape("qwen2vl", 28, 1024, 8, 2, 2816, 32768, STEPS, _qwen(21),
                    Vision("qwen2.5vl", 512, 16, 8, 1368, 560, pixels_per_token=28)),
    "qwen2.5-vl-3b": Shape("qwen2vl", 36, 2048, 16, 2, 11008, 151936, (1024,), _qwen(27), QWEN_VIT),
    "qwen2.5-vl-7b": Shape("qwen2vl", 28, 3584, 28, 4, 18944, 151936, (1024,), _qwen(21), QWEN_VIT),
    "qwen3-vl-8b": Shape("qwen3vl", 36, 4096, 32, 8, 12288, 151936, (1024,), _qwen(27), QWEN3_VIT),
    "qwen3.5-9b": Shape("qwen35", 32, 4096, 16, 4, 12288, 248320, (1024,), _qwen(24) | QWEN35_FIRST, QWEN35_VIT,
                        head_dim=256),
    "gemma-3-4b": Shape("gemma3", 34, 2560, 8, 4, 10240, 262208, (256,), GEMMA3, SIGLIP, head_dim=256),
    "llava-1.5-7b": Shape("llama", 32, 4096, 32, 32, 11008, 32064, (576,), LLAVA, CLIP_L),
    "llava-next-mistral-7b": Shape("llama", 32, 4096, 32, 8, 14336, 32064, (2880,), LLAVA_NEXT, CLIP_L_TILES),
    # for tests of the bench itself
    "tiny": Shape("qwen2vl", 8, 128, 4, 2, 256, 512, (256,), _qwen(6),
                  Vision("qwen2.5vl", 64, 4, 2, 128, 560, pixels_per_token=28), head_dim=32),
    "tiny-qwen3vl": Shape("qwen3vl", 8, 128, 4, 2, 256, 512, (256,), _qwen(6),
                          Vision("qwen3vl", 64, 6, 2, 128, 768, pixels_per_token=32, patch=16), head_dim=32),
    "tiny-qwen3.5": Shape("qwen35", 12, 128, 4, 2, 256, 512, (256,), _qwen(8) | QWEN35_FIRST,
                          Vision("qwen3.5vl", 64, 6, 2, 128, 768, pixels_per_token=32, patch=16), head_dim=64),
    "tiny-gemma-3": Shape("gemma3", 8, 128, 4, 2, 256, 512, (64,), GEMMA3 | {"ssr.layer": 6},
                          Vision("gemma3", 64, 3, 2, 128, 448), head_dim=32),
    "tiny-llava": Shape("llama", 8, 128, 4, 2, 256, 512, (100,), LLAVA | {"ssr.layer": 5},
                        Vision("llava", 32, 3, 2, 64, 140), head_dim=32),
}  # fmt: skip


def model_file(name: str, shape: Shape, ftype: str, folder: Path) -> Path:
    """The file of a shape, written when it is not there yet. Weights are random: only speed can be measured with it."""
    dims = dataclasses.asdict(shape)
    for other in ("tokens", "vision"):
        del dims[other]
    arch, profile = dims.pop("arch"), dims.pop("profile")
    path = _place(folder, f"{name}-{arch}-{ftype}", [arch, dims, profile])
    if not path.is_file():
        _writers().write_model(path, arch, ftype=ftype, profile=profile, **dims)
    return path


def mmproj_file(name: str, shape: Shape, folder: Path) -> Path:
    """Its vision encoder, in f16 as they are published."""
    dims = dataclasses.asdict(shape.vision)
    kind = dims.pop("kind")
    del dims["pixels_per_token"]
    path = _place(folder, f"mmproj-{name}-f16", [kind, dims, shape.n_embd])
    if not path.is_file():
        _writers().write_mmproj(path, kind, n_embd=shape.n_embd, ftype="f16", **dims)
    return path


def _place(folder: Path, name: str, described: list[Any]) -> Path:
    """An older file of another shape or profile must not be taken for it."""
    mark = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{mark}.gguf"


def _writers() -> SimpleNamespace:
    """They need gguf, which nothing else here does."""
    try:
        from halfv_edge.testing.random_mmproj import write_mmproj
        from halfv_edge.testing.random_models import write_model
    except ModuleNotFoundError as error:
        raise HalfVError(f"Models of random weights need {error.name}: run pip install 'halfv-edge[bench]'.") from error
    return SimpleNamespace(write_model=write_model, write_mmproj=write_mmproj)

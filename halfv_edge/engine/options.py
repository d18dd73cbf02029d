"""How a model is loaded: the settings, checked as they are made."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from halfv_cpp.tensor_types import KV_TYPES

from halfv_edge.engine.encoder import MMPROJ_TYPES
from halfv_edge.errors import HalfVError
from halfv_edge.profile.profile import Profile

FLASH = {"auto": -1, False: 0, True: 1}
LEAST = {
    "n_ctx": 1,
    "n_threads": 1,
    "n_batch": 1,
    "n_ubatch": 1,
    "image_max_tokens": 1,
    "image_cache_mb": 0,
    "undo_mb": 0,
}

ProfileSource = Profile | Mapping[str, Any] | str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What `Model.load` takes beside the files; every field may be given to it by name.

    Example:
        >>> ModelOptions(n_ctx=4096).n_ctx
        4096
    """

    profile: ProfileSource = None
    """A Profile, its JSON as a dict or a file, a preset's name or "off"; None is what comes with the model."""
    keep: float | None = None
    """The share of visual tokens in stage II, in place of the profile's."""
    pixel_tau: float | Literal["off"] | None = None
    """In place of the profile's, for Qwen-VL: patches within so many of 255 levels of what their neighbours predict
    stay out of the encoder; 0 are equal ones, "off" is none."""
    visual_share: float | None = None
    """Of n_ctx, set aside for visual tokens, in place of the profile's: with 0.75 text has a quarter of it, and the KV
    cache of deeper layers is as much smaller as tokens are pruned. 0: text may fill all of it."""
    n_ctx: int | None = None
    """Tokens of a conversation, pictures included; None is 8192, or what the model was trained for if that is less."""
    n_gpu_layers: int = -1
    """Layers on the GPU; -1 is all."""
    n_threads: int | None = None
    """On the CPU; None is one per core."""
    n_batch: int = 2048
    """Tokens of a prompt that are given to llama.cpp at once."""
    n_ubatch: int = 512
    """Tokens of a batch that are computed at once."""
    flash_attn: Literal["auto"] | bool = "auto"
    """Flash attention in the language model; "auto" is where it helps."""
    kv_type: str = "f16"
    """Type of the KV cache: f16, q8_0, ..."""
    seed: int | None = None
    """Of every answer that names none."""
    mmproj_type: str = "auto"
    """Type of the encoder's weights in memory: "auto" is the fastest here that keeps its output, "file" as they are
    stored, "off" as llama.cpp loads and computes them, else bf16, f16, q8_0, ..."""
    image_max_tokens: int | None = None
    """Visual tokens per picture, for encoders that take any size."""
    image_cache_mb: int = 512
    """Memory for encoded pictures that no chat uses."""
    undo_mb: int = 256
    """For choosing again when a question is removed; a picture without room there is not pruned."""
    verbose: bool = False
    """llama.cpp's log on stderr."""

    def __post_init__(self) -> None:
        check_choice("kv_type", self.kv_type, KV_TYPES)
        check_choice("flash_attn", self.flash_attn, FLASH)
        check_choice("mmproj_type", self.mmproj_type, MMPROJ_TYPES)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise HalfVError(parameter=name, value=value, rule=f"at least {least}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise HalfVError(parameter="keep", value=self.keep, rule="above 0 and at most 1")
        if self.pixel_tau is not None and self.pixel_tau != "off" and not 0 <= self.pixel_tau <= 255:
            raise HalfVError(parameter="pixel_tau", value=self.pixel_tau, rule="between 0 and 255")
        if self.visual_share is not None and not 0 <= self.visual_share <= 1:
            raise HalfVError(parameter="visual_share", value=self.visual_share, rule="between 0 and 1")


class ModelFields(TypedDict, total=False):
    """The fields of ModelOptions, for type checkers and editors; a test holds the two together."""

    profile: ProfileSource
    keep: float | None
    pixel_tau: float | Literal["off"] | None
    visual_share: float | None
    n_ctx: int | None
    n_gpu_layers: int
    n_threads: int | None
    n_batch: int
    n_ubatch: int
    flash_attn: Literal["auto"] | bool
    kv_type: str
    seed: int | None
    mmproj_type: str
    image_max_tokens: int | None
    image_cache_mb: int
    undo_mb: int
    verbose: bool


def check_choice(name: str, value: object, choices: Collection[Any]) -> None:
    if value not in choices:
        raise HalfVError(parameter=name, value=value, rule=f"one of {', '.join(map(str, choices))}")

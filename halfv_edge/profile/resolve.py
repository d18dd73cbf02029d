"""Which profile a model runs with: the one place that decides."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from halfv_edge.profile import presets
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from halfv_edge.profile.stored import read_environment, read_gguf, read_sidecar


@dataclass(frozen=True, slots=True)
class Resolved:
    """The profile in force and where it is from; "environment" is HALFV=off."""

    profile: Profile | None
    source: Literal["flag", "HALFV_PROFILE", "sidecar", "gguf", "preset", "off", "environment"]
    preset: str | None = None
    published: bool | None = None  # of a preset: used in the paper, not scaled from another size


def resolve(model: ModelFile | str | os.PathLike[str], override: Profile | Literal["off"] | None = None) -> Resolved:
    """Which profile a model runs with: flag or API, HALFV_PROFILE, sidecar, GGUF, preset, off.

    What is found first is validated; when it is wrong that is an error and not a reason to go on to the next. The
    native library reads HALFV_PROFILE and the GGUF alone, so the caller sets the result, None too, with
    halfv_model_set_profile.
    """
    if switched_off():
        return Resolved(None, "environment")
    if override == "off":
        return Resolved(None, "flag")
    model = model if isinstance(model, ModelFile) else ModelFile.read(model)
    if override is not None:
        return Resolved(override.validate(model.n_layer), "flag")
    return find_profile(model)


def switched_off() -> bool:
    """HALFV=off or HALFV=0 in the environment, as the native library reads it."""
    return os.environ.get("HALFV") in ("off", "0")


def find_profile(model: ModelFile) -> Resolved:
    """The profile of a model when no flag says otherwise: HALFV_PROFILE, sidecar, GGUF, preset, off."""
    if profile := read_environment(model):
        return Resolved(profile, "HALFV_PROFILE")
    if profile := read_sidecar(model):
        return Resolved(profile, "sidecar")
    if profile := read_gguf(model):
        return Resolved(profile, "gguf")
    if preset := presets.match(model.architecture, model.names, model.n_layer):
        return Resolved(preset.profile.validate(model.n_layer), "preset", preset.name, preset.published)
    return Resolved(None, "off")

"""What a model's files come to before it runs: its profile, where that is from, and why pictures would go whole."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import halfv_cpp
from halfv_cpp import llama_h, log

from halfv_edge.engine import libraries
from halfv_edge.engine.encoder import find_mmproj
from halfv_edge.engine.model_profile import resolve_profile
from halfv_edge.engine.options import Pruning
from halfv_edge.errors import HalfVError
from halfv_edge.gguf import encoder_keys
from halfv_edge.gguf.read import read_metadata
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from halfv_edge.profile.resolve import Resolved, switched_off


@dataclass(frozen=True, slots=True)
class Outlook:
    """A model and what will happen to pictures it is given."""

    about: ModelFile
    mmproj: Path | None
    resolved: Resolved
    why_whole: str  # "" when pictures will be pruned

    @property
    def profile_source(self) -> str:
        return f"preset {self.resolved.preset}" if self.resolved.preset else self.resolved.source

    @property
    def projector(self) -> str | None:
        return encoder_keys.projector(read_metadata(self.mmproj)) if self.mmproj else None

    def as_json(self) -> dict[str, Any]:
        profile = self.resolved.profile
        return {
            "path": str(self.about.path),
            "architecture": self.about.architecture,
            "n_layer": self.about.n_layer,
            "mmproj": str(self.mmproj) if self.mmproj else None,
            "projector": self.projector,
            "profile": profile and profile.to_json(),
            "profile_source": self.profile_source,
            "prunes": not self.why_whole,
            "not_pruned": self.why_whole or None,
        }


def look(model: Path, mmproj: Path | None, wanted: Pruning) -> Outlook:
    """Without loading weights. An encoder that is not beside the model is none: a server may run text alone."""
    about = ModelFile.read(model)
    try:
        mmproj = find_mmproj(mmproj, about)
    except HalfVError:
        if mmproj is not None:
            raise
    resolved = resolve_profile(about, wanted)
    found = resolved.profile
    if found and mmproj and found.input_keep < 1 and found.prunes(about.n_layer) and not _supported(about.path):
        resolved = dataclasses.replace(resolved, profile=found.encoder_part(about.n_layer))
    return Outlook(about, mmproj, resolved, _why_whole(about, mmproj, resolved))


def _why_whole(about: ModelFile, mmproj: Path | None, resolved: Resolved) -> str:
    if mmproj is None:
        return f"there is no vision encoder (mmproj) beside {about.path.name}, so it takes no pictures"
    if switched_off():
        return f"HALFV={os.environ['HALFV']} is set in the environment"
    if resolved.profile is None:
        if resolved.source == "flag":
            return "the profile was switched off (off)"
        return "no profile is known for this model: --profile names one, `halfv calibrate` finds one"
    if resolved.profile.input_keep < 1:
        return ""
    if not resolved.profile.prunes(about.n_layer):
        return "the profile keeps everything"
    if not _supported(about.path):
        return f"this architecture ({about.architecture}) cannot be pruned"
    return ""


def _supported(path: Path) -> bool:
    """Asks the library, for which the model must be loaded; its weights are mapped, and not read."""
    libraries.load()
    log.capture()
    llama_h.llama_backend_init()
    log.clear()
    params = llama_h.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False
    model = llama_h.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise HalfVError(f"{path} cannot be loaded: {log.last_words()}.")
    try:
        return bool(halfv_cpp.halfv_model_supported(model))
    finally:
        llama_h.llama_model_free(model)


def whole(n_layer: int) -> Profile:
    """A profile that prunes nothing, in place of one that a file carries."""
    return Profile.default(n_layer)

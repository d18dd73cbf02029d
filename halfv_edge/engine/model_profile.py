"""Which profile a model runs under: what was asked for, against what comes with it and what it can do."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import halfv_cpp
from halfv_cpp import llama_h

from halfv_edge.engine.options import ProfileSource, Pruning
from halfv_edge.errors import HalfVError
from halfv_edge.profile import frontier, model_file, presets, resolve, stored
from halfv_edge.profile import profile as profiles
from halfv_edge.profile.keys import ASKED
from halfv_edge.profile.profile import Profile
from halfv_edge.profile.resolve import Resolved

BY_SPEED = re.compile(r"(\d{1,3}(?:\.\d+)?)x")  # 4x: of those in the file, one that is as fast


def resolve_profile(about: model_file.ModelFile, wanted: Pruning) -> Resolved:
    """What this comes to for the model, after the sidecar, the file and the presets."""
    keep, given = wanted.keep, wanted.profile
    if keep is not None and given == "off":
        raise HalfVError(
            "needs a profile, and {profile} says none",
            parameter="keep",
            value=keep,
            hint="leave one of them out",
            settings={"profile": "off"},
        )
    resolved = resolve.resolve(about, _override(given, about))
    named = {name: value for name in ASKED if (value := getattr(wanted, name)) is not None}
    share = named.pop("visual_share", None)  # which is for no other tokens, so evidence holds
    given_parts: dict[str, Any] = {name: None if value == "off" else value for name, value in named.items()}
    if given_parts and resolved.source != "environment":
        base = resolved.profile or Profile.default(about.n_layer)
        _check_layer_and_share("encoder", wanted, base)
        _check_layer_and_share("ffn", wanted, base)
        if (changed := dataclasses.replace(base, **given_parts)) != base:
            resolved = dataclasses.replace(resolved, profile=_changed(changed, about))
    if share is not None and resolved.profile is not None:
        changed = dataclasses.replace(resolved.profile, visual_share=share).validate(about.n_layer)
        resolved = dataclasses.replace(resolved, profile=changed)
    if keep is None:
        return resolved
    if resolved.profile is None:
        if resolved.source != "environment":
            raise HalfVError(
                "needs a profile",
                parameter="keep",
                value=keep,
                hint=f"{about.path.name} has none, so give {{profile}} as well",
                settings={"profile": None},
            )
        return resolved
    changed = dataclasses.replace(resolved.profile, ivr_keep=keep)
    return dataclasses.replace(resolved, profile=_changed(changed, about))


def _check_layer_and_share(part: str, wanted: Pruning, base: Profile) -> None:
    """They belong together; one of them may be the profile's."""
    if getattr(base, f"{part}_keep") < 1:
        return
    layer, keep = getattr(wanted, f"{part}_layer"), getattr(wanted, f"{part}_keep")
    if layer is None and keep not in (None, 1):
        name, other, value = f"{part}_keep", f"{part}_layer", keep
    elif keep is None and layer is not None:
        name, other, value = f"{part}_layer", f"{part}_keep", layer
    else:
        return
    raise HalfVError(
        f"says nothing without {other.replace('_', '.')}, which the profile does not name",
        parameter=name,
        value=value,
        hint=f"give {{{other}}} as well",
        settings={other: None},
    )


def _changed(profile: Profile, about: model_file.ModelFile) -> Profile:
    """Without the evidence, which was for another profile."""
    return dataclasses.replace(profile, calibration=None).validate(about.n_layer)


def if_supported(resolved: Resolved, model: int, path: Path) -> Resolved:
    """An architecture that cannot be pruned runs whole but for what the encoder does; to ask for more is a mistake."""
    if resolved.profile is None or halfv_cpp.halfv_model_supported(model):
        return resolved
    n_layer = llama_h.llama_model_n_layer(model)
    if resolved.source == "flag" and resolved.profile.prunes(n_layer):
        raise HalfVError(
            f"{path.name} cannot be pruned: its architecture runs whole",
            hint="give {profile}",
            settings={"profile": "off"},
        )
    part = resolved.profile.encoder_part(n_layer)
    return Resolved(None, "off") if part == Profile.default(n_layer) else dataclasses.replace(resolved, profile=part)


def _override(given: ProfileSource, about: model_file.ModelFile) -> Profile | Literal["off"] | None:
    """What profile=... means."""
    if given is None or isinstance(given, Profile):
        return given
    if given == "off":
        return "off"
    if isinstance(given, str) and (speed := BY_SPEED.fullmatch(given)):
        return frontier.choose(about, float(speed[1]))
    if isinstance(given, Mapping):
        return Profile.from_json({"version": profiles.VERSION, **given})
    if not isinstance(given, str) or given.endswith(".json") or os.sep in given:
        return stored.read_json(Path(given))
    preset = presets.get(given)
    if preset.architecture != about.architecture:
        raise HalfVError(
            f"The preset {preset.name} is for models of the architecture {preset.architecture}, and {about.path.name} "
            f"is {about.architecture}."
        )
    return preset.scaled(about.n_layer).profile

"""Which profile a converted model carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfv_edge.profile import presets
from halfv_edge.profile.profile import Profile

VICUNA_WORDS = 33000  # Llama 2's 32000 tokens and a few added ones; Yi's and Llama 3's vocabularies are larger


@dataclass(frozen=True, slots=True)
class Chosen:
    profile: Profile | None
    source: str  # in words


def choose(wanted: Mapping[str, Any], config: Mapping[str, Any], architecture: str, n_layer: int) -> Chosen:
    """`wanted` has one of `profile` (as JSON), `preset` (a name) or neither; both None means by what the model is."""
    if not wanted["with_profile"]:
        return Chosen(None, "none, as asked")
    if wanted["profile"] is not None:
        return Chosen(Profile.from_json(wanted["profile"]).validate(n_layer), "as given")
    if wanted["preset"] is not None:
        preset: presets.Preset | None = presets.get(wanted["preset"]).scaled(n_layer)
    else:
        # The name tells only the size: two of Qwen2-VL's have as many layers.
        size = re.search(r"\d+b(?![a-z])", wanted["name"].lower())
        family = family_of(config)
        preset = presets.match(architecture, (f"{family} {size[0] if size else ''}",), n_layer) if family else None
    if preset is None:
        kind = (config.get("architectures") or ["this model"])[0]
        return Chosen(None, f"none, as there is no preset for {kind}: `halfv calibrate` finds a profile for it")
    how = "published" if preset.published else "scaled from a published one, not measured"
    return Chosen(preset.profile.validate(n_layer), f"the preset {preset.name} ({how})")


def family_of(config: Mapping[str, Any]) -> str | None:
    """The family of presets, from the configuration and not from the name: the wrong stage III ruins a model."""
    kind, text = config.get("model_type"), config.get("text_config", {})
    vicuna = (
        text.get("model_type") == "llama"
        and text.get("vocab_size", 0) < VICUNA_WORDS
        and text.get("num_key_value_heads") == text.get("num_attention_heads")
    )
    if kind == "llava" and vicuna:
        return "llava-1.5"
    if kind == "llava_next" and (vicuna or text.get("model_type") == "mistral"):
        return "llava-next-vicuna" if vicuna else "llava-next-mistral"
    return {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}.get(str(kind))

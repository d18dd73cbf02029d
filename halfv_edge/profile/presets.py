"""Presets: the published profiles, and the same scaled by relative depth for other models of a family.

How layers scale: `ssr.layer` stays at the same share of the depth, rounded half up. `ivr.layer` stays what it is in a
model of 24 layers or more, because it marks the end of the cliff in the first layers, which does not move with the
depth; in a smaller model it scales as well, and is at least 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from halfv_edge.errors import HalfVError
from halfv_edge.profile.profile import DROPPED, FROZEN, Profile

DEEP = 24  # layers from which ivr.layer does not scale

VICUNA = Profile(3, 0.5, 0.2, 15, 0.0, FROZEN)
MISTRAL = Profile(2, 0.5, 0.1, 16, 0.0, FROZEN)
QWEN = Profile(2, 0.25, 0.1, 21, 0.05, DROPPED, pixel_tau=0)


@dataclass(frozen=True, slots=True)
class Preset:
    """A profile for models of one name and depth."""

    name: str
    family: str
    architecture: str  # general.architecture
    n_layer: int
    profile: Profile
    published: bool

    def scaled(self, n_layer: int) -> Preset:
        """The same for another depth."""
        if n_layer == self.n_layer:
            return self
        return dataclasses.replace(
            self, n_layer=n_layer, profile=scale(self.profile, self.n_layer, n_layer), published=False
        )


def scale(profile: Profile, n_from: int, n_to: int) -> Profile:
    """A profile at the same relative depths of a model of n_to layers."""
    if n_to < 2:
        raise HalfVError(f"A model of {n_to} layers cannot be pruned: stage I and stage II need one each.")
    ivr = profile.ivr_layer if min(n_from, n_to) >= DEEP else _half_up(profile.ivr_layer, n_from, n_to)
    ivr = min(max(ivr, 1), n_to - 1)
    ssr = max(_half_up(profile.ssr_layer, n_from, n_to), ivr + 1)
    return dataclasses.replace(profile, ivr_layer=ivr, ssr_layer=ssr, calibration=None)


def _half_up(layer: int, n_from: int, n_to: int) -> int:
    return (2 * layer * n_to + n_from) // (2 * n_from)


# family: general.architecture, and what general.name or general.basename has, in lower case and letters and digits only
FAMILIES = {
    "llava-1.5": ("llama", r"llavav?15"),
    "llava-next-mistral": ("llama", r"llava(next|v?16).*mistral"),
    "llava-next-vicuna": ("llama", r"llava(next|v?16).*vicuna"),
    "qwen2.5-vl": ("qwen2vl", r"qwen25vl"),
    "qwen2-vl": ("qwen2vl", r"qwen2vl"),
    "qwen3-vl": ("qwen3vl", r"qwen3vl"),
}


def _table() -> dict[str, Preset]:
    """The first of a family is what other depths of it are scaled from."""
    rows = []
    for family, size, n_layer, n_from, profile in (
        ("llava-1.5", "7b", 32, 32, VICUNA),
        ("llava-1.5", "13b", 40, 40, VICUNA),  # published with the same layers as 7B
        ("llava-next-mistral", "7b", 32, 32, MISTRAL),
        ("llava-next-vicuna", "7b", 32, 32, VICUNA),
        ("llava-next-vicuna", "13b", 40, 40, VICUNA),
        ("qwen2.5-vl", "7b", 28, 28, QWEN),
        ("qwen2.5-vl", "3b", 36, 28, QWEN),
        ("qwen2.5-vl", "32b", 64, 28, QWEN),
        ("qwen2.5-vl", "72b", 80, 28, QWEN),
        ("qwen2-vl", "7b", 28, 28, QWEN),
        ("qwen2-vl", "2b", 28, 28, QWEN),
        ("qwen2-vl", "72b", 80, 28, QWEN),
        ("qwen3-vl", "2b", 28, 28, QWEN),
        ("qwen3-vl", "4b", 36, 28, QWEN),
        ("qwen3-vl", "8b", 36, 28, QWEN),
        ("qwen3-vl", "32b", 64, 28, QWEN),
    ):
        published = f"{family}-{size}" in PUBLISHED
        if n_layer != n_from:
            profile = scale(profile, n_from, n_layer)
        rows.append(Preset(f"{family}-{size}", family, FAMILIES[family][0], n_layer, profile, published))
    return {row.name: row for row in rows}


PUBLISHED = ("llava-1.5-7b", "llava-1.5-13b", "llava-next-mistral-7b", "qwen2.5-vl-7b")
PRESETS = _table()


def get(name: str) -> Preset:
    """A preset by its name."""
    found = PRESETS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), PRESETS, 1)
        hint = f"did you mean {near[0]}" if near else f"those are {', '.join(PRESETS)}"
        raise HalfVError(f"There is no preset {name!r}: {hint}.")
    return found


def match(architecture: str, names: Iterable[str], n_layer: int) -> Preset | None:
    """The preset of a model by what its GGUF says of itself; scaled when no size of the family has that depth."""
    squeezed = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    for family, (of_architecture, pattern) in FAMILIES.items():
        if architecture != of_architecture or not any(re.search(pattern, name) for name in squeezed):
            continue
        sizes = [preset for preset in PRESETS.values() if preset.family == family]
        same_depth = [preset for preset in sizes if preset.n_layer == n_layer] or sizes[:1]
        named = [preset for preset in same_depth if any(preset.name.rpartition("-")[2] in name for name in squeezed)]
        return (named or same_depth)[0].scaled(n_layer) if n_layer >= 2 else None
    return None

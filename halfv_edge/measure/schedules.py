"""Layers and shares of published ways to spend less on a picture, and how policies write them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from halfv_edge.errors import HalfVError
from halfv_edge.profile.profile import DROPPED, Profile

AIM_STEPS = 4  # in place of a share for each layer


def staged(n_layer: int, layers: Sequence[int], keep: Sequence[float]) -> Profile:
    """From each of these layers on a share of the tokens; the others are dropped."""
    base = dataclasses.replace(Profile.default(n_layer), ivr_layer=layers[0], ivr_keep=keep[0])
    if len(layers) > 1:
        base = dataclasses.replace(base, ssr_layer=layers[1], ssr_update=keep[1], ssr_rest=DROPPED)
    return dataclasses.replace(base, further_layers=tuple(layers[2:]), further_keep=tuple(keep[2:]))


def aim_schedule(n_layer: int) -> tuple[list[int], list[float]]:
    """Published: of 28 layers the 16th sees 7/8, each next 1/8 less, the 23rd none. Here the same at relative depths,
    neighbouring layers joined to at most four with their mean share, which costs as much."""
    shares = [min(1.0, max(0.0, 1 - (layer * 28 / n_layer - 14) / 8)) for layer in range(n_layer)]
    falling = [layer for layer, seen in enumerate(shares) if 0 < seen < 1 and layer > 0]
    size = max(1, -(-len(falling) // AIM_STEPS))
    groups = [falling[at : at + size] for at in range(0, len(falling), size)]
    layers = [group[0] for group in groups]
    keep = [sum(shares[layer] for layer in group) / len(group) for group in groups]
    empty = next((layer for layer, seen in enumerate(shares) if seen == 0 and layer > 0), None)
    return (layers, keep) if empty is None else ([*layers, empty], [*keep, 0.0])


def twig_schedule(n_layer: int, name: str, value: str, after: int) -> Profile:
    """TwigVLM's: all tokens in so many layers, the same share up to three quarters of the depth, none behind. Over all
    layers that is the mean which is given."""
    wipe = max(after + 1, round(0.75 * n_layer))
    wanted = share(name, value) if value else 1 / 3  # 192 of 576
    keep = (n_layer * wanted - after) / (wipe - after)
    if not 0 < keep <= 1:
        between = f"above {after / n_layer:.2g} and at most {wipe / n_layer:.2g}"
        raise HalfVError(f"The policy {name!r} is not valid: in {n_layer} layers the mean is {between}.")
    return dataclasses.replace(staged(n_layer, [after, wipe], [keep, 0.0]), min_visual_tokens=1)


def share(name: str, value: str) -> float:
    if not re.fullmatch(r"0?\.\d+|1(\.0*)?", value) or not float(value):
        raise HalfVError(f"The policy {name!r} is not valid: {value} must be a share above 0 and at most 1.")
    return float(value)


def share_or_none(name: str, value: str) -> float:
    return 0.0 if re.fullmatch(r"0(\.0*)?", value) else share(name, value)


def whole(name: str, value: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", value):
        raise HalfVError(f"The policy {name!r} is not valid: {value} must be a whole number of at least 1.")
    return int(value)


def yopo(n_layer: int) -> Profile:
    """YOPO as published for LLaVA-1.5-7B: visual tokens see neighbours in 5 x 5, have three quarters of the heads from
    the third layer on, take half of the channels, and are gone in the second half. Here the first layer is whole."""
    base = Profile.default(n_layer)
    gone = max(2, n_layer // 2)
    return dataclasses.replace(
        base, min_visual_tokens=1, ssr_layer=gone, ssr_update=0.0, ssr_rest=DROPPED, ffn_layer=1, ffn_keep=0.5,
        heads_layer=2, heads_keep=0.75, neighbours_layer=1, neighbours_width=5,
    )  # fmt: skip

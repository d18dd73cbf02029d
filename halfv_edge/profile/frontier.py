"""Profiles by speed: the frontier that a calibration found, carried in the model's GGUF under one key."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from halfv_edge.errors import HalfVError, quote
from halfv_edge.gguf.read import STRING
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from halfv_edge.profile.values import PREFIX, InvalidError, to_f32

KEY = PREFIX + "frontier"
FIELDS = {"speedup", "divergence", "profile"}


@dataclass(frozen=True, slots=True)
class Point:
    """A profile, and what it was found to do."""

    speedup: float  # of a picture, unpruned by pruned
    divergence: float  # KL from the unpruned model, nats per token
    profile: Profile


def to_gguf(points: Sequence[Point]) -> dict[str, tuple[int, Any]]:
    """The key with its type and value; nothing without points."""
    values = [
        {
            "speedup": to_f32(point.speedup),
            "divergence": to_f32(point.divergence),
            "profile": replace(point.profile, calibration=None).to_json(),
        }
        for point in sorted(points, key=lambda point: point.speedup)
    ]
    return {KEY: (STRING, json.dumps(values, separators=(",", ":")))} if values else {}


def read(model: ModelFile) -> tuple[Point, ...]:
    """The points in a GGUF, the slowest first; one that is not valid is an error."""
    entry = model.metadata.entries.get(KEY)
    if entry is None:
        return ()
    text = model.metadata.value(KEY) if entry.type == STRING else None
    try:
        values = json.loads(text) if isinstance(text, str) else None
        if not isinstance(values, list):
            raise InvalidError(f"{KEY} is not a list of points in JSON")
        return tuple(sorted((_point(value, model.n_layer) for value in values), key=lambda point: point.speedup))
    except (InvalidError, ValueError, RecursionError) as error:
        raise HalfVError(f"{model.path}: {error}") from error


def _point(value: Any, n_layer: int) -> Point:
    if not isinstance(value, dict) or value.keys() != FIELDS:
        raise InvalidError(f"{KEY} has {quote(value)}: a point is speedup, divergence and profile")
    numbers = [value["speedup"], value["divergence"]]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) and number >= 0 for number in numbers):
        raise InvalidError(f"{KEY} has {quote(numbers)}: speedup and divergence are numbers of at least 0")
    return Point(float(numbers[0]), float(numbers[1]), Profile.from_json(value["profile"]).validate(n_layer))


def choose(model: ModelFile, speed: float) -> Profile:
    """The nearest to the unpruned model of those that are as fast."""
    points = read(model)
    if not points:
        raise HalfVError(
            f"{model.path.name} carries no profiles to choose from by speed: `halfv calibrate --write` finds some."
        )
    fast = [point for point in points if point.speedup >= speed]
    if not fast:
        raise HalfVError(
            f"{model.path.name} has no profile that is {speed:g} times faster: the fastest is "
            f"{math.floor(100 * points[-1].speedup) / 100:g}."
        )
    return min(fast, key=lambda point: point.divergence).profile

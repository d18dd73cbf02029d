"""What a measurement says while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from halfv_edge.errors import HalfVError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, in the measurement's own units of work; `total` is 0 while that is not known."""

    done: float
    total: float
    doing: str


Watch = Callable[[Progress], None]
Sentence = Callable[[HalfVError], str]
Say = Callable[[str], None]  # hears what a person should know


def ignore(_: object) -> None:
    """For callers that want to hear nothing."""

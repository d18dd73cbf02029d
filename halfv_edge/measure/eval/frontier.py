"""What each way retains at the time and at the FLOPs of the profile, between the numbers that were run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from halfv_edge.measure.eval.results import EqualRow
from halfv_edge.measure.policies import STOCK, UNPRUNED


class Row(Protocol):
    """As much of a PolicyRow."""

    @property
    def policy(self) -> str: ...
    @property
    def ttft_ratio(self) -> float: ...
    @property
    def flops_ratio(self) -> float: ...
    @property
    def retention(self) -> float | None: ...


PROFILE = "profile"
# not ways to save time, and the profile itself with another number
LEFT_OUT = (UNPRUNED, STOCK, "kv", "calibquant", "keep")
SLACK = 1.02  # by which a way may miss the profile's time or FLOPs and still count as reaching it


def time_share(row: Row) -> float:
    """Of the unpruned model's."""
    return 1 / row.ttft_ratio


def flops_share(row: Row) -> float:
    return 1 / row.flops_ratio


def kind(policy: str) -> str:
    """`keep` of `keep:0.1`."""
    return policy.partition(":")[0]


def at_the_profiles(rows: Sequence[Row]) -> list[EqualRow]:
    """Retention per kind of policy, by straight lines between its numbers and the unpruned model.

    Nothing when the profile was not run, or when there is nothing to retain.
    """
    named = {row.policy: row for row in rows}
    if PROFILE not in named or any(row.retention is None for row in rows):
        return []
    kinds = list(dict.fromkeys(kind(name) for name in named if kind(name) not in LEFT_OUT))
    return [
        EqualRow(name, *(_at(rows, name, share, share(named[PROFILE])) for share in (time_share, flops_share)))
        for name in kinds
    ]


def _at(rows: Sequence[Row], name: str, share: Callable[[Row], float], place: float) -> float | None:
    mine = [row for row in rows if kind(row.policy) in (name, UNPRUNED)]
    points = sorted((share(row), row.retention) for row in mine if row.retention is not None)
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if x <= place <= next_x:
            return y if x == next_x else y + (next_y - y) * (place - x) / (next_x - x)
    if place > points[-1][0]:
        return points[-1][1]
    return points[0][1] if points[0][0] <= place * SLACK else None

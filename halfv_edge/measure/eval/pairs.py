"""Policy against policy on the same pictures: each that leads where it stands, and its runner-up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from halfv_edge.errors import HalfVError
from halfv_edge.measure.eval.evaluation import Result
from halfv_edge.measure.eval.frontier import SLACK, flops_share, time_share
from halfv_edge.measure.eval.questions import Question
from halfv_edge.measure.eval.results import PairRow, PolicyRow
from halfv_edge.measure.policies import STOCK, UNPRUNED

SHARES: dict[str, Callable[[PolicyRow], float]] = {"FLOPs": flops_share, "time": time_share}


def of_pairs(
    questions: Sequence[Question], rows: Sequence[PolicyRow], found: dict[str, list[Result]], against: str | None
) -> list[PairRow]:
    """All held against one policy, or else each that leads against its runner-up."""
    saving = [row for row in rows if row.policy not in (UNPRUNED, STOCK)]
    if against is not None:
        others = [row.policy for row in rows if row.policy not in (UNPRUNED, against)]
        return [_pair(questions, found, against, other, "") for other in others]
    leads: dict[tuple[str, str], list[str]] = {}
    for name, share in SHARES.items():
        for first, second in _leaders(saving, share):
            leads.setdefault((first, second), []).append(name)
    return [_pair(questions, found, *pair, ", ".join(names)) for pair, names in leads.items()]


def check_against(against: str | None, names: Sequence[str]) -> None:
    if against is not None and against not in names:
        raise HalfVError(
            parameter="against", value=against, rule=f"one of the policies that are asked, {', '.join(names)}"
        )


def _leaders(rows: Sequence[PolicyRow], share: Callable[[PolicyRow], float]) -> list[tuple[str, str]]:
    """Those with the best score of all that cost no more, and the best of those others."""
    found = []
    for row in sorted(rows, key=share):
        rivals = [other for other in rows if other is not row and share(other) <= share(row) * SLACK]
        if rivals:
            second = max(rivals, key=_merit)
            if _merit(row) > _merit(second):
                found.append((row.policy, second.policy))
    return found


def _merit(row: PolicyRow) -> tuple[float, float]:
    return row.score, -row.kl


def _pair(
    questions: Sequence[Question], found: dict[str, list[Result]], first: str, second: str, leads: str
) -> PairRow:
    scores, divergences = (_by_picture(questions, found[first], found[second], name) for name in ("score", "kl"))
    better, worse = sum(x > 0 for x in scores), sum(x < 0 for x in scores)
    spread = statistics.stdev(divergences) / math.sqrt(len(divergences)) if len(divergences) > 1 else 0.0
    return PairRow(
        first, second, leads, len(scores), better, worse, sign_test(better, worse),
        -statistics.fmean(divergences), spread,
    )  # fmt: skip


def _by_picture(questions: Sequence[Question], one: list[Result], other: list[Result], name: str) -> list[float]:
    """By how much the first has more of it, a mean per picture: questions on one are not independent."""
    differences: dict[object, list[float]] = {}
    for question, a, b in zip(questions, one, other, strict=True):
        differences.setdefault(question.image, []).append((a[name] or 0.0) - (b[name] or 0.0))
    return [statistics.fmean(values) for values in differences.values()]


def sign_test(better: int, worse: int) -> float:
    """How likely a split at least as uneven is when both are alike, two-sided and exact."""
    total = better + worse
    tail: int = sum(math.comb(total, k) for k in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / 2**total))

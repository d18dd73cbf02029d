"""Policies paired question by question: who leads, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from halfv_edge.errors import HalfVError
from halfv_edge.measure.eval import pairs
from halfv_edge.measure.eval.evaluation import Result
from halfv_edge.measure.eval.questions import Question


def row(policy: str, saves: float, score: float, kl: float = 0.1, sooner: float | None = None) -> Any:
    return SimpleNamespace(policy=policy, flops_ratio=saves, ttft_ratio=sooner or saves, score=score, kl=kl)


def asked(n: int, per_picture: int = 1) -> list[Question]:
    return [Question(str(at), Path(str(at // per_picture)), "", ("yes",), "a", "exact") for at in range(n)]


def results(scores: list[float], kl: list[float] | None = None) -> list[Result]:
    return [{"score": score, "kl": k} for score, k in zip(scores, kl or [0.1] * len(scores), strict=True)]


def test_each_that_leads_meets_its_runner_up() -> None:
    """Of those that cost no more: one that costs more is no rival, however good."""
    rows = [row("unpruned", 1, 1), row("stock", 1, 1), row("gentle", 2, 0.99), row("good", 4, 0.95)]
    rows += [row("poor", 4.05, 0.9), row("fast", 8, 0.7), row("beaten", 3, 0.94)]
    found = {one.policy: results([one.score]) for one in rows}
    leads = pairs.of_pairs(asked(1), rows, found, None)
    assert [(pair.first, pair.second, pair.leads) for pair in leads] == [
        ("good", "poor", "FLOPs, time"),
        ("gentle", "good", "FLOPs, time"),
    ]


def test_time_and_flops_have_leaders_of_their_own() -> None:
    rows = [row("unpruned", 1, 1), row("a", 3, 0.9, sooner=2), row("b", 2, 0.8, sooner=3)]
    found = {one.policy: results([one.score]) for one in rows}
    (pair,) = pairs.of_pairs(asked(1), rows, found, None)
    assert (pair.first, pair.second, pair.leads) == ("a", "b", "time")


def test_against_one() -> None:
    rows = [row("unpruned", 1, 1), row("a", 3, 0.9), row("b", 2, 0.8)]
    found = {one.policy: results([one.score]) for one in rows}
    assert [(p.first, p.second) for p in pairs.of_pairs(asked(1), rows, found, "a")] == [("a", "b")]
    with pytest.raises(HalfVError, match="against = 'c' is not valid: it must be one of the policies that are asked"):
        pairs.check_against("c", ["unpruned", "a"])


def test_counts_and_divergence() -> None:
    rows = [row("a", 3, 0.9), row("b", 2, 0.8)]
    found = {
        "a": results([1, 1, 0, 1, 1, 1], [0.0, 0.1, 0.2, 0.0, 0.1, 0.2]),
        "b": results([0, 1, 1, 0, 0, 0], [0.2, 0.2, 0.2, 0.4, 0.2, 0.3]),
    }
    (pair,) = pairs.of_pairs(asked(6), rows, found, "a")
    assert (pair.n_pictures, pair.first_better, pair.second_better) == (6, 4, 1)
    assert pair.p == pytest.approx(2 * (1 + 5) / 2**5)
    less = np.array([0.2, 0.1, 0.0, 0.4, 0.1, 0.1])
    assert pair.kl_less == pytest.approx(less.mean())
    assert pair.kl_error == pytest.approx(less.std(ddof=1) / np.sqrt(6))
    # three questions a picture: the first has two of one picture's, and all of the other's
    (pair,) = pairs.of_pairs(asked(6, per_picture=3), rows, found, "a")
    assert (pair.n_pictures, pair.first_better, pair.second_better) == (2, 1, 0)


def test_sign_test() -> None:
    assert pairs.sign_test(0, 0) == pairs.sign_test(5, 5) == 1
    assert pairs.sign_test(6, 0) == pairs.sign_test(0, 6) == pytest.approx(2 / 64)
    assert pairs.sign_test(900, 1100) == pytest.approx(8.5e-6, rel=0.1)  # of thousands

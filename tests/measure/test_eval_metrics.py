"""Metrics and intervals against values worked out by hand or published."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from halfv_edge.measure.eval import intervals, metrics


@pytest.mark.parametrize(
    ("metric", "answer", "truths", "score"),
    [
        ("exact", " Red.\n", ["red"], 1),
        ("exact", "the red one", ["red"], 0),
        ("exact", "12%", ["12"], 0),
        ("exact", "blue", ["red", "Blue"], 1),
        ("vqa", "2", ["two"] * 10, 1),
        ("vqa", "a cat", ["cat"] * 3 + ["dog"] * 7, (3 * 2 / 3 + 7 * 1) / 10),
        ("vqa", "cat", ["cat"] + ["dog"] * 9, (0 + 9 / 3) / 10),
        ("vqa", "The answer, I think", ["answer i think"], 1),
        ("vqa", "1,000.50", ["1000.50"], 1),
        ("vqa", "cat", ["dog", "cat"], 1),
        ("vqa", "cat", ["cat", "dog", "dog"], 1),
        ("vqa", "cat", ["cat", "dog", "dog", "dog"], (0 + 3 / 3) / 4),
        ("anls", "Coca Cola", ["coca cola"], 1),
        ("anls", "cocacola", ["coca cola", "pepsi"], 1 - 1 / 9),
        ("anls", "fanta", ["coca cola"], 0),
        ("anls", "ab", ["cb"], 0.5),
        ("relaxed", "95.1", ["100"], 1),
        ("relaxed", "94.9", ["100"], 0),
        ("relaxed", "50%", ["0.5"], 1),
        ("relaxed", "$1,020", ["1000"], 1),
        ("relaxed", "0.01", ["0"], 0),
        ("relaxed", "Norway", ["norway"], 1),
        ("relaxed", "-5", ["-5.2"], 1),
        ("yesno", "Yes, there is.", ["yes"], 1),
        ("yesno", "There is not.", ["no"], 1),
        ("yesno", "I know nothing", ["no"], 0),
        ("choice", "(B) a cat", ["B"], 1),
        ("choice", "B.", ["B"], 1),
        ("choice", "A cat", ["A"], 0),
        ("choice", "C", ["B"], 0),
        ("choice", "a dog", ["a dog"], 1),
    ],
)
def test_metric(metric: str, answer: str, truths: list[str], score: float) -> None:
    assert metrics.METRICS[metric](answer, truths) == pytest.approx(score)


def test_distance_is_levenshtein() -> None:
    assert metrics.distance("kitten", "sitting") == 3
    words = ["".join(letters) for length in range(4) for letters in itertools.product("ab", repeat=length)]
    for a, b in itertools.product(words, words):
        whole = metrics.distance(a, b)
        assert whole == metrics.distance(b, a)
        assert (whole == 0) == (a == b)
        assert abs(len(a) - len(b)) <= whole <= max(len(a), len(b))


def test_f1() -> None:
    said, truths = ["yes", "yes", "no", "", "yes"], ["yes", "no", "yes", "yes", "yes"]
    precision, recall = 2 / 3, 2 / 4
    assert metrics.f1(said, truths) == pytest.approx(2 * precision * recall / (precision + recall))
    assert metrics.f1(["no"], ["no"]) == 0


def test_wilson() -> None:
    assert intervals.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # published
    assert intervals.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert intervals.wilson(0, 0) == (0, 1)


def test_bootstrap_of_a_mean() -> None:
    """Near the normal interval where that is right, and the same each time."""
    rng = np.random.default_rng(0)
    values, groups = rng.normal(0.6, 0.2, 400), list(range(400))
    samples = intervals.weights(400) @ intervals.by_group(values, groups, 400) / 400
    low, high = intervals.quantiles(samples)
    half = intervals.Z * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)
    assert (intervals.weights(7) == intervals.weights(7)).all()
    assert (intervals.weights(7).sum(axis=1) == 7).all()


def test_questions_of_one_picture_are_not_independent() -> None:
    """Ten answers to each of 20 pictures, all right or all wrong, say as little as 20 answers."""
    right = [float(at % 2) for at in range(20) for _ in range(10)]
    groups = [at for at in range(20) for _ in range(10)]
    low, high = intervals.quantiles(intervals.weights(20) @ intervals.by_group(right, groups, 20) / 200)
    assert high - low == pytest.approx(2 * intervals.Z * math.sqrt(0.25 / 20), rel=0.15)


def test_samples_that_cannot_be_computed_are_left_out() -> None:
    assert intervals.quantiles(np.array([1.0, np.nan, 1.0, np.inf])) == (1, 1)
    assert all(map(math.isnan, intervals.quantiles(np.array([np.nan]))))

"""From single answers to rows: scores with intervals, retention, agreement, divergence, time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import numpy as np

from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.eval import intervals, metrics
from halfv_edge.measure.eval.evaluation import Result
from halfv_edge.measure.eval.questions import Question
from halfv_edge.measure.eval.results import ConversationRow, PolicyRow, TaskScore, TurnScore


class Sample:
    """The questions as bootstrap groups: those of one picture are not independent of each other."""

    def __init__(self, questions: Sequence[Question]):
        self.questions = list(questions)
        places = {image: at for at, image in enumerate(dict.fromkeys(question.image for question in questions))}
        self.groups = [places[question.image] for question in questions]
        self.n_groups = len(places)
        self.weights = intervals.weights(self.n_groups)
        self.tasks = list(dict.fromkeys(question.task for question in questions))

    def task(self, name: str) -> list[int]:
        return [at for at, question in enumerate(self.questions) if question.task == name]

    def means(self, values: Sequence[float], places: Sequence[int]) -> Floats:
        """Bootstrap samples of the mean over these questions."""
        groups = [self.groups[at] for at in places]
        total = self.weights @ intervals.by_group([values[at] for at in places], groups, self.n_groups)
        count = self.weights @ intervals.by_group([1.0] * len(places), groups, self.n_groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Floats = total / count
        return means


def of_policies(questions: Sequence[Question], found: dict[str, list[Result]]) -> list[PolicyRow]:
    """A row per policy; the first is what the others are held against."""
    sample = Sample(questions)
    base = next(iter(found.values()))
    return [_row(sample, name, results, base) for name, results in found.items()]


def _row(sample: Sample, name: str, results: list[Result], base: list[Result]) -> PolicyRow:
    tasks = {task: _task(sample, task, results, base) for task in sample.tasks}
    score = statistics.fmean(task.score for task in tasks.values())
    scores = np.mean([_means(sample, task, results) for task in sample.tasks], axis=0)
    before = np.mean([_means(sample, task, base) for task in sample.tasks], axis=0)
    whole = statistics.fmean(_score(sample, task, base) for task in sample.tasks)
    with np.errstate(invalid="ignore", divide="ignore"):
        retained = intervals.quantiles(scores / before)
    divergence = [result["kl"] for result in results if result["kl"] is not None]
    pairs = list(zip(base, results, strict=True))
    return PolicyRow(
        policy=name,
        score=score,
        score_interval=intervals.quantiles(scores),
        retention=score / whole if whole else None,
        retention_interval=retained if whole else None,
        agreement=_mean(results, "agrees"),
        kl=statistics.fmean(divergence) if divergence else 0.0,
        n_visual=_mean(results, "n_visual"),
        n_kept=_mean(results, "n_kept"),
        n_deep=_mean(results, "n_deep"),
        n_whole=sum(result["unpruned"] not in ("", "unpruned") for result in results),
        flops=_mean(results, "flops"),
        flops_ratio=_mean(base, "flops") / _mean(results, "flops"),
        ttft_s=statistics.median(map(ttft, results)),
        ttft_ratio=statistics.median(ttft(unpruned) / ttft(result) for unpruned, result in pairs),
        enter_s=statistics.median(result["enter_s"] for result in results),
        tasks=tasks,
    )


def _mean(results: Sequence[Result], name: str) -> float:
    return statistics.fmean(result[name] for result in results)


def ttft(result: Result) -> float:
    """Encoder, picture and question."""
    return float(result["encode_s"] + result["ahead_s"] + result["enter_s"])


def _means(sample: Sample, task: str, results: list[Result]) -> Floats:
    return sample.means([result["score"] for result in results], sample.task(task))


def _score(sample: Sample, task: str, results: list[Result]) -> float:
    return statistics.fmean(results[at]["score"] for at in sample.task(task))


def _task(sample: Sample, task: str, results: list[Result], base: list[Result]) -> TaskScore:
    places = sample.task(task)
    kinds = {sample.questions[at].metric for at in places}
    score, whole = _score(sample, task, results), _score(sample, task, base)
    graded = bool(kinds & metrics.GRADED)
    interval = (
        intervals.quantiles(_means(sample, task, results))
        if graded
        else intervals.wilson(score * len(places), len(places))
    )
    retention = score / whole if whole else None
    row = TaskScore(len(places), score, interval, "bootstrap" if graded else "Wilson", retention)
    if kinds != {"yesno"}:
        return row
    said = [metrics.yes_no(results[at]["text"]) for at in places]
    truths = [metrics.yes_no(sample.questions[at].answers[0]) for at in places]
    return dataclasses.replace(row, f1=metrics.f1(said, truths), says_yes=said.count("yes") / len(said))


def of_conversations(
    dialogues: Sequence[Sequence[Question]], found: dict[str, list[list[Result]]]
) -> list[ConversationRow]:
    """A row per way of holding a conversation: first questions, and later ones."""
    base = next(iter(found.values()))
    rows = []
    for name, talks in found.items():
        first, later = [turns[0] for turns in talks], [turn for turns in talks for turn in turns[1:]]
        before, after = [turns[0] for turns in base], [turn for turns in base for turn in turns[1:]]
        rows.append(
            ConversationRow(
                way=name,
                first=_turns(first, before),
                later=_turns(later, after),
                ahead_s=statistics.median(turn["ahead_s"] for turn in first),
                n_visual=_mean(first, "n_visual"),
                n_kept_first=_mean(first, "n_kept"),
                n_kept_last=_mean([turns[-1] for turns in talks], "n_kept"),
            )
        )
    return rows


def _turns(turns: list[Result], base: list[Result]) -> TurnScore:
    score, whole = _mean(turns, "score"), _mean(base, "score")
    return TurnScore(
        n=len(turns),
        score=score,
        interval=intervals.wilson(score * len(turns), len(turns)),
        retention=score / whole if whole else None,
        enter_s=statistics.median(turn["enter_s"] for turn in turns),
    )

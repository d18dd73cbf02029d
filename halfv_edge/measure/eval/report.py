"""What was found: scores with intervals, retention, agreement, divergence, time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from halfv_edge.measure.eval import frontier, intervals, metrics
from halfv_edge.measure.eval.questions import Question
from halfv_edge.measure.eval.run import Result

MEAN = "mean of tasks"


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

    def means(self, values: Sequence[float], places: Sequence[int]) -> np.ndarray:
        """Bootstrap samples of the mean over these questions."""
        groups = [self.groups[at] for at in places]
        total = self.weights @ intervals.by_group([values[at] for at in places], groups, self.n_groups)
        count = self.weights @ intervals.by_group([1.0] * len(places), groups, self.n_groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / count


def summary(questions: Sequence[Question], found: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """A row per policy; the first is what the others are held against."""
    sample = Sample(questions)
    base = next(iter(found.values()))
    return [_row(sample, name, results, base) for name, results in found.items()]


def _row(sample: Sample, name: str, results: list[Result], base: list[Result]) -> dict[str, Any]:
    tasks = {task: _task(sample, task, results, base) for task in sample.tasks}
    score = statistics.fmean(task["score"] for task in tasks.values())
    scores = np.mean([_means(sample, task, results) for task in sample.tasks], axis=0)
    before = np.mean([_means(sample, task, base) for task in sample.tasks], axis=0)
    whole = statistics.fmean(_score(sample, task, base) for task in sample.tasks)
    with np.errstate(invalid="ignore", divide="ignore"):
        retained = intervals.quantiles(scores / before)
    divergence = [result["kl"] for result in results if result["kl"] is not None]
    return {
        "policy": name,
        "score": score,
        "score_interval": intervals.quantiles(scores),
        "retention": score / whole if whole else None,
        "retention_interval": retained if whole else None,
        "agreement": statistics.fmean(result["agrees"] for result in results),
        "kl": statistics.fmean(divergence) if divergence else 0.0,
        "n_visual": statistics.fmean(result["n_visual"] for result in results),
        "n_kept": statistics.fmean(result["n_kept"] for result in results),
        "n_deep": statistics.fmean(result["n_deep"] for result in results),
        "n_whole": sum(result["unpruned"] not in ("", "unpruned") for result in results),
        "flops": statistics.fmean(result["flops"] for result in results),
        "flops_ratio": sum(one["flops"] for one in base) / sum(result["flops"] for result in results),
        "ttft_s": statistics.median(map(ttft, results)),
        "ttft_ratio": statistics.median(ttft(one) / ttft(result) for one, result in zip(base, results, strict=True)),
        "enter_s": statistics.median(result["enter_s"] for result in results),
        "tasks": tasks,
    }


def ttft(result: Result) -> float:
    """Encoder, picture and question."""
    return result["encode_s"] + result["ahead_s"] + result["enter_s"]


def _means(sample: Sample, task: str, results: list[Result]) -> np.ndarray:
    return sample.means([result["score"] for result in results], sample.task(task))


def _score(sample: Sample, task: str, results: list[Result]) -> float:
    return statistics.fmean(results[at]["score"] for at in sample.task(task))


def _task(sample: Sample, task: str, results: list[Result], base: list[Result]) -> dict[str, Any]:
    places = sample.task(task)
    kinds = {sample.questions[at].metric for at in places}
    score, whole = _score(sample, task, results), _score(sample, task, base)
    graded = bool(kinds & metrics.GRADED)
    interval = (
        intervals.quantiles(_means(sample, task, results))
        if graded
        else intervals.wilson(score * len(places), len(places))
    )
    row = {
        "n": len(places),
        "score": score,
        "interval": interval,
        "interval_kind": "bootstrap" if graded else "Wilson",
        "retention": score / whole if whole else None,
    }
    if kinds == {"yesno"}:
        said = [metrics.yes_no(results[at]["text"]) for at in places]
        truths = [metrics.yes_no(sample.questions[at].answers[0]) for at in places]
        row |= {"f1": metrics.f1(said, truths), "says_yes": said.count("yes") / len(said)}
    return row


def follow_up(dialogues: Sequence[Sequence[Question]], found: dict[str, list[list[Result]]]) -> list[dict[str, Any]]:
    """A row per way of holding a conversation: first questions, and later ones."""
    base = next(iter(found.values()))
    rows = []
    for name, talks in found.items():
        first, later = [turns[0] for turns in talks], [turn for turns in talks for turn in turns[1:]]
        before, after = [turns[0] for turns in base], [turn for turns in base for turn in turns[1:]]
        rows.append(
            {
                "way": name,
                "first": _turns(first, before),
                "later": _turns(later, after),
                "ahead_s": statistics.median(turn["ahead_s"] for turn in first),
                "n_visual": statistics.fmean(turn["n_visual"] for turn in first),
                "n_kept_first": statistics.fmean(turn["n_kept"] for turn in first),
                "n_kept_last": statistics.fmean(turns[-1]["n_kept"] for turns in talks),
            }
        )
    return rows


def _turns(turns: list[Result], base: list[Result]) -> dict[str, Any]:
    score = statistics.fmean(turn["score"] for turn in turns)
    whole = statistics.fmean(turn["score"] for turn in base)
    return {
        "n": len(turns),
        "score": score,
        "interval": intervals.wilson(score * len(turns), len(turns)),
        "retention": score / whole if whole else None,
        "enter_s": statistics.median(turn["enter_s"] for turn in turns),
    }


#
# tables
#


def as_table(report: dict[str, Any]) -> str:
    about = f"{report['model']}, {report['n_questions']} questions on {report['n_pictures']} pictures"
    about += f"; 95% intervals; {report['commit']}; {report['machine']['cpu']}, {report['n_threads']} threads"
    if report["follow_up"]:
        return f"{about}\n\n{_table([_follow_up_cells(row) for row in report['rows']])}"
    policies = _table([_cells(row) for row in report["rows"]])
    tables = [policies, _table([_task_cells(row) for row in report["rows"]])]
    if len(report["equal"]) > 1:
        tables.append(_table([_equal_cells(row) for row in report["equal"]]))
    return "\n\n".join([about, *tables])


def _table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "policy": row["policy"],
        "kept": f"{row['n_visual']:.0f} -> {row['n_kept']:.0f} -> {row['n_deep']:.0f}",
        "FLOPs ratio": f"{row['flops_ratio']:.2f}",
        "TTFT s": f"{row['ttft_s']:.3f}",
        "faster": f"{row['ttft_ratio']:.2f}",
        "score %": _percent(row["score"], row["score_interval"]),
        "retention %": _percent(row["retention"], row["retention_interval"]),
        "agrees %": f"{100 * row['agreement']:.1f}",
        "KL": f"{row['kl']:.4f}",
    }


def _task_cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {"policy": row["policy"]}
    for name, task in row["tasks"].items():
        text = _percent(task["score"], task["interval"])
        cells[f"{name} ({task['n']})"] = text + (f", F1 {100 * task['f1']:.1f}" if "f1" in task else "")
    return cells


def _equal_cells(row: dict[str, Any]) -> dict[str, str]:
    shares = {axis: "not reached" if row[axis] is None else f"{100 * row[axis]:.1f}" for axis in frontier.AXES}
    return {
        "kind": row["kind"],
        "retention % at the profile's time": shares["time"],
        "retention % at its FLOPs": shares["flops"],
    }


def _follow_up_cells(row: dict[str, Any]) -> dict[str, str]:
    first, later = row["first"], row["later"]
    return {
        "conversation": row["way"],
        "kept": f"{row['n_visual']:.0f} -> {row['n_kept_first']:.0f}, {row['n_kept_last']:.0f} at the end",
        "before Enter s": f"{row['ahead_s']:.3f}",
        "Enter to first token s": f"{first['enter_s']:.3f}",
        f"first questions % ({first['n']})": _percent(first["score"], first["interval"]),
        "later: to first token s": f"{later['enter_s']:.3f}",
        f"later questions % ({later['n']})": _percent(later["score"], later["interval"]),
        "later: retention %": "" if later["retention"] is None else f"{100 * later['retention']:.1f}",
    }


def _percent(value: float | None, interval: intervals.Interval | None) -> str:
    if value is None or interval is None:
        return ""
    return f"{100 * value:.1f} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"

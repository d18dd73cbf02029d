"""Questions with their answers: lines of JSON beside pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from halfv_edge import files
from halfv_edge.errors import HalfVError, quote
from halfv_edge.measure.eval.metrics import METRICS

MAX_BYTES = 512 << 20
Item = TypeVar("Item")
EXAMPLE = '{"image": "a.png", "question": "...", "answers": ["..."], "task": "...", "metric": "exact"}'


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture, and what is right."""

    key: str  # of its results
    image: Path
    question: str
    answers: tuple[str, ...]
    task: str
    metric: str

    def score(self, answer: str) -> float:
        """Say how right an answer is, from 0 to 1.

        Args:
            answer: What the model said.

        Returns:
            By the question's metric.
        """
        return METRICS[self.metric](answer, self.answers)


def read_questions(
    paths: Sequence[Path], *, metric: str | None = None, suffix: str = "", limit: int | None = None
) -> list[Question]:
    """Read the questions of JSONL files.

    Args:
        paths: Each line is {"image": ..., "question": ..., "answers": [...]}, with "task" and "metric" if need be.
        metric: In place of theirs.
        suffix: Put behind every question.
        limit: At most so many, spread over the files.

    Returns:
        The questions, in the order of the files.

    Raises:
        HalfVError: A line is not like that, or a picture is not there.
    """
    return _checked(_spread_evenly(_read_all(paths, metric, suffix), limit))


def read_dialogues(
    paths: Sequence[Path], *, metric: str | None = None, suffix: str = "", limit: int | None = None
) -> list[Question]:
    """Read the questions of JSONL files that can be asked in a conversation: several on one picture.

    Args:
        paths: As for `read_questions`.
        metric: In place of theirs.
        suffix: Put behind every question.
        limit: At most so many pictures.

    Returns:
        The questions, those of one picture after each other.
    """
    talks = _spread_evenly(dialogues(_read_all(paths, metric, suffix)), limit)
    if not talks:
        raise HalfVError(f"{paths[0]} has no picture with two questions, as a conversation needs.")
    return _checked([question for talk in talks for question in talk])


def dialogues(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that follow each other on the same picture; a picture with only one has no second question."""
    groups: dict[Path, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.image, []).append(question)
    return [group for group in groups.values() if len(group) > 1]


def _read_all(paths: Sequence[Path], metric: str | None, suffix: str) -> list[Question]:
    found = [question for path in paths for question in _read(path, metric, suffix)]
    if not found:
        raise HalfVError(f"{paths[0]} has no questions: its lines must be like {EXAMPLE}.")
    return found


def _checked(questions: list[Question]) -> list[Question]:
    missing = next((question for question in questions if not question.image.is_file()), None)
    if missing:
        raise HalfVError(f"{missing.image} does not exist: it is named for {missing.question[:60]!r}.")
    return questions


def _spread_evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most so many."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[at * len(items) // limit] for at in range(limit)]


def _read(path: Path, metric: str | None, suffix: str) -> Iterator[Question]:
    raw = files.read_small(path, MAX_BYTES, f"is longer than {MAX_BYTES >> 20} MB: split it")
    for number, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise HalfVError(f"{path}, line {number} is not JSON: it must be like {EXAMPLE}.") from error
            yield _question(value, path, number, metric, suffix)


def _question(value: Any, path: Path, number: int, metric: str | None, suffix: str) -> Question:
    def wrong(what: str) -> HalfVError:
        return HalfVError(f"{path}, line {number} {what}: it must be like {EXAMPLE}.")

    if not isinstance(value, dict):
        raise wrong(f"is {quote(value)}")
    for key in ("image", "question"):
        if not isinstance(value.get(key), str):
            raise wrong(f"has no {key}")
    answers = value.get("answers", value.get("answer"))
    answers = [answers] if isinstance(answers, (str, int, float)) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, (str, int, float)) for a in answers):
        raise wrong("has no answers")
    task, named = value.get("task", path.stem), metric or value.get("metric", "exact")
    if not isinstance(task, str):
        raise wrong(f"has the task {quote(task)}")
    if named not in METRICS:
        raise HalfVError(
            f"{path}, line {number} has the metric {quote(named)}: it must be one of {', '.join(METRICS)}."
        )
    return Question(
        f"{path.name}:{number}", path.parent / value["image"], value["question"] + suffix,
        tuple(str(answer) for answer in answers), task, named,
    )  # fmt: skip

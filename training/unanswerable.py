"""Questions that a picture does not answer: those of other pictures, and those about the world."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from training import pictures, words_of_world
from training.pictures.phrases import template_words

ANSWER = "I cannot tell"
TASK = "unknown"
# tasks whose questions mean nothing where there is no chart, document or interface
OF_THEIR_OWN = ("chart", "document", "interface")
# they could be asked of almost any picture
OF_ANY = ("chart/title", "document/title", "document/nth", "document/field", "document/cell", "document/row")
WITH_DATES = ("document/date", "document/time")
WITHOUT_DATES = ("shapes", "words", "mixed", "plot")  # kinds of pictures
ATTEMPTS = 8


@cache
def _of_templates() -> frozenset[str]:
    return frozenset(word.lower() for word in template_words())


def unanswerable(
    rng: random.Random, sample: pictures.Sample, others: Sequence[pictures.Sample]
) -> pictures.Question | None:
    """A question that only "I cannot tell" answers, if chance finds one."""
    if not others or rng.random() < 0.25:
        return pictures.Question(TASK, words_of_world.question(rng), ANSWER, "unknown/world")
    shown = "".join(char for char, *_ in sample.chars).lower()
    tasks = {question.task for question in sample.questions}
    for _ in range(ATTEMPTS):
        other = rng.choice(others)
        if other.kind == sample.kind or not other.questions:
            continue
        question = rng.choice(other.questions)
        if question.task not in OF_THEIR_OWN or question.task in tasks or question.group in OF_ANY:
            continue
        if question.group in WITH_DATES and sample.kind not in WITHOUT_DATES:
            continue
        if not any(word in shown for word in named(question.text)):
            return pictures.Question(TASK, question.text, ANSWER, "unknown/" + question.group)
    return None


def named(text: str) -> list[str]:
    """What a question asks about by its name, and the longer words of its template."""
    found = [word.strip(".,?!\"'").lower() for word in re.findall(r"\S+", text)]
    return [word for word in found if word and (word not in _of_templates() or len(word) > 3)]

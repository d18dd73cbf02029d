"""How right an answer is: the published metrics of the usual question sets, from 0 to 1."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

ANLS_LEAST = 0.5  # a similarity under it counts as wrong
TOLERANCE = 0.05  # of relaxed numbers
VQA_ENOUGH = 3  # people who gave the same answer make it right
VQA_MANY = 4  # answers from which on each one is held against the others
ARTICLES = {"a", "an", "the"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
EDGES = string.punctuation.replace("%", "").replace("$", "") + string.whitespace
LETTER = re.compile(r"\(?([A-H])([).:]|$)")


def tidy(text: str) -> str:
    """Case, blanks and punctuation around it do not matter."""
    return re.sub(r"\s+", " ", text).strip(EDGES).casefold()


def exact(answer: str, truths: Sequence[str]) -> float:
    return float(any(tidy(answer) == tidy(truth) for truth in truths))


def vqa(answer: str, truths: Sequence[str]) -> float:
    """VQA soft accuracy: right as far as three other people agree; with fewer than four, any is right."""
    mine, theirs = _vqa_words(answer), [_vqa_words(truth) for truth in truths]
    if len(theirs) < VQA_MANY:
        return float(mine in theirs)
    matches = theirs.count(mine)
    others = [matches - (truth == mine) for truth in theirs]
    return sum(min(1.0, count / VQA_ENOUGH) for count in others) / len(others)


def _vqa_words(text: str) -> str:
    """As the VQA evaluation compares: no punctuation, no articles, small numbers as digits."""
    text = re.sub(r"(?<!\d)[.,](?!\d)|(?<=\d),(?=\d{3})", "", text.casefold().replace("\n", " "))
    text = re.sub(r"[;/\[\]\"{}()=+\\_<>@`?!*:]", " ", text)
    words = [DIGITS.get(word, word) for word in text.split() if word not in ARTICLES]
    return " ".join(word.strip(".,'") for word in words)


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity, of one question: the nearest truth counts."""
    return max(_similarity(" ".join(answer.casefold().split()), " ".join(t.casefold().split())) for t in truths)


def _similarity(a: str, b: str) -> float:
    if not a and not b:
        return 1.0
    near = 1 - distance(a, b) / max(len(a), len(b))
    return near if near >= ANLS_LEAST else 0.0


def distance(a: str, b: str) -> int:
    """Levenshtein: insertions, deletions and replacements."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def relaxed(answer: str, truths: Sequence[str]) -> float:
    """ChartQA: a number may be off by 5%, text has to be the same."""
    return float(any(_relaxed(answer, truth) for truth in truths))


def _relaxed(answer: str, truth: str) -> bool:
    mine, true = _number(answer), _number(truth)
    if mine is None or true is None:
        return tidy(answer) == tidy(truth)
    return mine == true if true == 0 else abs(mine - true) / abs(true) <= TOLERANCE


def _number(text: str) -> float | None:
    text = text.strip().rstrip(".").replace(",", "").lstrip("$€£").strip()
    try:
        return float(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def yes_no(answer: str) -> str:
    """The first yes or no in an answer, "" without one."""
    found = re.search(r"\b(yes|no|not)\b", answer.casefold())
    return "" if not found else "yes" if found[1] == "yes" else "no"


def yesno(answer: str, truths: Sequence[str]) -> float:
    said = yes_no(answer)
    return float(bool(said) and any(said == yes_no(truth) for truth in truths))


def choice(answer: str, truths: Sequence[str]) -> float:
    """The letter of a choice, as in "B", "(B)" or "B. a cat"; else the text."""
    found = LETTER.match(answer.strip())
    return float(any(found is not None and found[1] == truth.strip() for truth in truths) or exact(answer, truths))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "vqa": vqa,
    "anls": anls,
    "relaxed": relaxed,
    "yesno": yesno,
    "choice": choice,
}
GRADED = {"vqa", "anls"}  # the others are right or wrong


def f1(said: Sequence[str], truths: Sequence[str]) -> float:
    """Of the positive answers: both are lists of "yes", "no" or ""."""
    right = sum(mine == true == "yes" for mine, true in zip(said, truths, strict=True))
    claimed, positive = said.count("yes"), list(truths).count("yes")
    return 2 * right / (claimed + positive) if claimed + positive else 0.0

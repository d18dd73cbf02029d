"""Which patches the words of a question and an answer are about, for heads that are taught to look there.

Without this, attention begins evenly over all patches, and tells a question's patch from the others only after far
more questions than there is time for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training import pictures
from training.teacher import GRID
from training.vocabulary import FIRST_WORD, PRINTABLE, SPECIALS, Vocabulary

MOST_PLACES = 3  # of the same text; more say nothing
MOST_PATCHES = 16  # that an answer is read from, if it is to be in one part of the picture
LEAST_CHARS = 2  # of a text that is looked for, unless it is there once
PUNCTUATION = ",.?!;:\"'"  # around what is read, of the question


@dataclass(frozen=True, slots=True)
class Grid:
    """The patches of a picture."""

    rows: int = GRID
    columns: int = GRID
    side: float = pictures.SIZE / GRID  # of a patch, in pixels of the drawn picture

    @property
    def n(self) -> int:
        return self.rows * self.columns

    def row(self, y: float) -> int:
        return min(max(int(y / self.side), 0), self.rows - 1)

    def column(self, x: float) -> int:
        return min(max(int(x / self.side), 0), self.columns - 1)

    def patch(self, box: Sequence[float]) -> int:
        """The one in which the middle of x0, y0, x1, y1 is."""
        return self.row((box[1] + box[3]) / 2) * self.columns + self.column((box[0] + box[2]) / 2)

    def covered(self, box: Sequence[float], inset: float) -> tuple[slice, slice]:
        """Rows and columns of what is inside a box by so many pixels."""
        x0, y0, x1, y1 = box
        rows = slice(self.row(y0 + inset), self.row(y1 - inset) + 1)
        return rows, slice(self.column(x0 + inset), self.column(x1 - inset) + 1)


SQUARE = Grid()


class Places:
    """Where what is in a picture can be seen."""

    def __init__(self, sample: pictures.Sample, grid: Grid = SQUARE):
        self._text = "".join(char for char, *_ in sample.chars)
        self._patches = [grid.patch(box) for _, *box in sample.chars]
        self._n = grid.n
        self._named: dict[str, np.ndarray] = {}
        for kind, colour, *box in sample.shapes:
            for name in (kind, colour):
                there = self._named.setdefault(name, np.zeros((grid.rows, grid.columns), bool))
                there[grid.covered(box, 4)] = True

    def named(self, word: str) -> np.ndarray | None:
        """Patches of the shapes that a word names by kind or colour."""
        word = word.strip().lower()
        for name in (word, word.removesuffix("s"), word.removesuffix("es")):
            if name in self._named:
                return self._named[name].ravel()
        return None

    def spelled(self, text: str) -> list[np.ndarray]:
        """Patches of each character of a text that is written in the picture; [] when it is not, or all over."""
        starts, at = [], self._text.find(text)
        while at >= 0:
            starts.append(at)
            at = self._text.find(text, at + 1)
        if not starts or len(starts) > (1 if len(text) < LEAST_CHARS else MOST_PLACES):
            return []
        found = [np.zeros(self._n, bool) for _ in text]
        for start in starts:
            for i in range(len(text)):
                found[i][self._patches[start + i]] = True
        return found

    def of_tokens(self, tokens: Sequence[int], vocabulary: Vocabulary) -> list[np.ndarray | None]:
        """Patches that each token is about, None where there are none."""
        found: list[np.ndarray | None] = [None] * len(tokens)
        run: list[int] = []  # of tokens that spell
        for i, token in enumerate([*tokens, 0]):
            byte = token - len(SPECIALS)
            if 0 <= byte < len(PRINTABLE):
                if byte != ord(" "):
                    run.append(i)
                continue
            while run and chr(tokens[run[0]] - len(SPECIALS)) in PUNCTUATION:
                del run[0]
            while run and chr(tokens[run[-1]] - len(SPECIALS)) in PUNCTUATION:
                del run[-1]
            chars = "".join(chr(tokens[j] - len(SPECIALS)) for j in run)
            for j, patches in zip(run, self.spelled(chars) if chars else [], strict=False):
                found[j] = patches
            run = []
            if token >= len(SPECIALS):
                found[i] = self.named(vocabulary.decode([token]))
        return found


def middle_of_answer(
    sample: pictures.Sample, question: pictures.Question, vocabulary: Vocabulary
) -> tuple[float, float] | None:
    """Row and column around which the answer is read; None when that is nowhere or all over."""
    asked, answer = vocabulary.encode(question.text), vocabulary.encode(question.answer)
    ahead = targets(Places(sample), asked, answer, vocabulary)[1]
    found = [patches for patches in ahead if patches is not None]
    if not found or np.mean([patches.sum() for patches in found]) > MOST_PATCHES:
        return None
    rows, columns = np.divmod(np.flatnonzero(np.logical_or.reduce(found)), GRID)
    return float(rows.mean()), float(columns.mean())


def targets(
    places: Places, asked: Sequence[int], answer: Sequence[int], vocabulary: Vocabulary
) -> tuple[list[np.ndarray | None], list[np.ndarray | None]]:
    """For each token of question and answer: the patches that it is about, and those of the answer's next token."""
    about = places.of_tokens(asked, vocabulary)
    answered = places.of_tokens(answer, vocabulary)
    clues = [patches for patches in about if patches is not None]
    for i, patches in enumerate(answered):
        if patches is not None and answer[i] >= FIRST_WORD:
            for clue in clues:  # the red of the square that was asked for
                both = patches & clue
                patches = both if both.any() else patches
            answered[i] = patches
    if clues and answered[0] is None:  # yes, no or a number: about what was asked for
        both = np.logical_and.reduce(clues)
        answered[0] = both if both.any() else np.logical_or.reduce(clues)
    return [*about, *answered], [*[None] * (len(asked) - 1), *answered, None]

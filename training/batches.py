"""Pictures and their questions as arrays, drawn by another process while the model trains."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from training import pictures
from training.pages import page
from training.pictures.canvas import CHARACTERS, SHAPE_KINDS
from training.pictures.colours import COLOURS
from training.pointing import SQUARE, Grid, Places, targets
from training.teacher import GRID, IMAGE_SIZE, N_PATCHES, N_PREFIX, sized
from training.vocabulary import Vocabulary

N_TEXT = 224  # tokens of text per picture
MOST_QUESTIONS = 30  # asked of a picture in training, as far as they fit: its visual tokens are paid once
N_SLOTS = 4  # characters of a patch that are told apart
CHAINED = 0.3  # pictures whose questions follow each other as in a conversation
NOTHING = -100  # no label here
FIRST_TOKEN = 2.0  # of an answer weighs more: it takes finding the place, the others going on from there

CHAR_CLASS = {char: i + 1 for i, char in enumerate(CHARACTERS)}
KIND_CLASS = {kind: i + 1 for i, kind in enumerate(SHAPE_KINDS)}
COLOUR_CLASS = {colour: i + 1 for i, colour in enumerate(COLOURS)}
# what is learnt about a patch: its characters, those before and after them, what covers it, what has its
# centre there, and where it is
HEADS = {
    **{f"char{slot}": len(CHAR_CLASS) + 1 for slot in range(N_SLOTS)},
    "previous": len(CHAR_CLASS) + 1,
    "next": len(CHAR_CLASS) + 1,
    "kind": len(KIND_CLASS) + 1,
    "colour": len(COLOUR_CLASS) + 1,
    "centre": len(KIND_CLASS) + 1,
    "row": GRID,
    "column": GRID,
}


@dataclass(slots=True)
class Batch:
    pixels: np.ndarray  # [B, H, W, 3] bytes
    labels: np.ndarray  # [B, patches, heads]
    text: np.ndarray  # [B, T]
    positions: np.ndarray  # [B, T]
    mask: np.ndarray  # [B, T, N_PREFIX + T]
    targets: np.ndarray  # [B, T]: the token that follows, NOTHING outside answers
    weights: np.ndarray  # [B, T]
    question: np.ndarray  # [B, T]: number of the question in `tasks`, -1 for none
    tasks: list[str]
    about: np.ndarray  # [B, T, patches]: what each token is about
    ahead: np.ndarray  # [B, T, patches]: what the next token of the answer is about
    patches_only: bool  # nothing to answer here


def patch_labels(sample: pictures.Sample, grid: Grid = SQUARE) -> np.ndarray:
    labels = np.zeros((grid.n, len(HEADS)), np.int16)
    columns = {name: i for i, name in enumerate(HEADS)}
    labels[:, columns["row"]], labels[:, columns["column"]] = np.divmod(np.arange(grid.n), grid.columns)

    for kind, colour, *box in sample.shapes:
        places, centre = labels.reshape(grid.rows, grid.columns, -1), grid.patch(box)
        rows, cols = grid.covered(box, grid.side / 2)
        for name, number in (("kind", KIND_CLASS.get(kind, 0)), ("colour", COLOUR_CLASS.get(colour, 0))):
            places[rows, cols, columns[name]] = number
            labels[centre, columns[name]] = number
        labels[centre, columns["centre"]] = KIND_CLASS.get(kind, 0)

    chars = [(CHAR_CLASS.get(char, 0), *box) for char, *box in sample.chars]
    inside: dict[int, list[int]] = {}
    for i, (_, *box) in enumerate(chars):
        inside.setdefault(grid.patch(box), []).append(i)
    for at, found in inside.items():
        found.sort(key=lambda i: chars[i][1])
        for slot, i in enumerate(found[:N_SLOTS]):
            labels[at, slot] = chars[i][0]
        first, last = found[0], found[-1]
        if first > 0 and _touching(chars[first - 1], chars[first]):
            labels[at, columns["previous"]] = chars[first - 1][0]
        if last + 1 < len(chars) and _touching(chars[last], chars[last + 1]):
            labels[at, columns["next"]] = chars[last + 1][0]
    return labels


def _touching(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether b comes after a in one word."""
    height = max(a[4] - a[2], b[4] - b[2])
    return a[1] < b[1] and b[1] - a[3] < 0.35 * height + 1 and a[2] < b[4] and b[2] < a[4]


@dataclass(slots=True)
class Row:
    """A token of text as it is learnt from."""

    token: int
    position: int
    group: int  # sees the picture and itself
    target: int
    weight: float
    about: np.ndarray | None
    ahead: np.ndarray | None


def lay_out(
    vocabulary: Vocabulary, sample: pictures.Sample, chained: bool, grid: Grid = SQUARE, most: int = N_TEXT
) -> tuple[list[Row], list[str]]:
    """Questions and answers, and the tasks of those that fit. Chained ones are one group, as in a conversation."""
    rows: list[Row] = []
    tasks: list[str] = []
    places = Places(sample, grid)
    questions = sample.questions
    if chained:  # long readings last: later answers could be copied from them
        questions = sorted(questions, key=lambda q: q.task in pictures.EXTRA_TASKS)
    for question in questions:
        asked = [*vocabulary.encode(question.text), vocabulary.end, vocabulary.assistant]
        answer = [*vocabulary.encode(question.answer), vocabulary.end]
        if chained and tasks:
            asked = [vocabulary.user, *asked]
        tokens = [*asked, *answer]
        if len(rows) + len(tokens) > most:
            continue
        start = N_PREFIX + (len(rows) if chained else 0)
        about, ahead = targets(places, asked, answer, vocabulary)
        for i, token in enumerate(tokens):
            is_answer = len(asked) - 1 <= i < len(tokens) - 1
            target, weight = (tokens[i + 1], len(answer) ** -0.5) if is_answer else (NOTHING, 0.0)
            if i == len(asked) - 1:
                weight *= FIRST_TOKEN
            rows.append(Row(token, start + i, 0 if chained else len(tasks), target, weight, about[i], ahead[i]))
        tasks.append(question.task)
    return rows, tasks


def collate(
    samples: Iterable[pictures.Sample],
    vocabulary: Vocabulary,
    rng: random.Random,
    patches_only: bool = False,
    side: int = IMAGE_SIZE,
) -> Batch:
    samples = list(samples)
    n = len(samples)
    text, positions = np.full((n, N_TEXT), vocabulary.end), np.zeros((n, N_TEXT), np.int64)
    group, question = np.full((n, N_TEXT), -1), np.full((n, N_TEXT), -1)
    wanted, weights = np.full((n, N_TEXT), NOTHING), np.zeros((n, N_TEXT), np.float32)
    tasks: list[str] = []
    about, ahead = np.zeros((n, N_TEXT, N_PATCHES), bool), np.zeros((n, N_TEXT, N_PATCHES), bool)
    for b, sample in enumerate(samples):
        rows, found = lay_out(vocabulary, sample, rng.random() < CHAINED)
        length, number = len(rows), len(tasks) - 1
        for i, row in enumerate(rows):
            text[b, i], positions[b, i], group[b, i] = row.token, row.position, row.group
            wanted[b, i], weights[b, i] = row.target, row.weight
            if row.about is not None:
                about[b, i] = row.about
            if row.ahead is not None:
                ahead[b, i] = row.ahead
            if row.target != NOTHING:
                if i == 0 or wanted[b, i - 1] == NOTHING:
                    number += 1
                question[b, i] = number
        positions[b, length:] = N_PREFIX
        tasks += found
    same = (group[:, :, None] == group[:, None, :]) & np.tril(np.ones((N_TEXT, N_TEXT), bool))
    mask = np.concatenate([np.ones((n, N_TEXT, N_PREFIX), bool), same], axis=2)
    return Batch(
        np.stack([sized(sample.image, side) for sample in samples]),
        np.stack([patch_labels(sample) for sample in samples]),
        text,
        positions,
        mask,
        wanted,
        weights,
        question,
        tasks,
        about,
        ahead,
        patches_only,
    )


def batches(
    split: str,
    size: int,
    first: int,
    vocabulary: Vocabulary,
    patches: int = 0,
    most: int = MOST_QUESTIONS,
    side: int = IMAGE_SIZE,
) -> Iterator[Batch]:
    """Pictures `first`, `first` + 1, ... of a split; one batch in `patches` has pages, for the encoder alone."""
    for start in itertools.count(first, size):
        patches_only = patches > 0 and start // size % patches == 0
        samples = [
            page(seed) if patches_only and seed % 2 else pictures.make(seed, split, most=most)
            for seed in range(start, start + size)
        ]
        yield collate(samples, vocabulary, random.Random(start), patches_only, side)


class Drawer:
    """`batches` of the training split out of a process of its own, a few ahead."""

    def __init__(self, size: int, first: int, words: list[str], core: int | None, patches: int, side: int):
        context = multiprocessing.get_context("spawn")
        self._queue = context.Queue(maxsize=8)
        self._process = context.Process(
            target=_draw, args=(self._queue, size, first, words, core, patches, side), daemon=True
        )
        self._process.start()

    def __next__(self) -> Batch:
        while True:
            try:
                return self._queue.get(timeout=10)
            except queue.Empty:
                if not self._process.is_alive():
                    raise RuntimeError("the process that draws pictures has ended; its error is above") from None

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def _draw(
    filled: multiprocessing.Queue, size: int, first: int, words: list[str], core: int | None, patches: int, side: int
) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    parent = multiprocessing.parent_process()
    for batch in batches("train", size, first, Vocabulary(words), patches, side=side):
        is_waiting = True
        while is_waiting:
            if not parent.is_alive():  # killed: nobody will take what waits
                os._exit(1)
            try:
                filled.put(batch, timeout=1)
                is_waiting = False
            except queue.Full:
                pass

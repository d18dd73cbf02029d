"""Batches as arrays, small enough to be sent from process to process, and the processes that draw them."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import random
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait

import numpy as np

from training.batches import CHAINED, HEADS, NOTHING, lay_out, patch_labels
from training.scenes import Scene, Scenes, repeated
from training.teacher import N_PREFIX
from training.vocabulary import Vocabulary

N_TEXT = 252  # tokens of text per picture: with those around it a multiple of 8, as kernels like it
HEAD_NAMES = [name for name in HEADS if name not in ("row", "column")]  # M-RoPE tells those
NO_LABEL = 255
SLOT_BYTES = 96 << 20
SLOTS = 3  # batches that a process draws ahead
NICE = 5


@dataclass(slots=True)
class Packed:
    rows: int
    columns: int
    kind: str
    holes: bool
    pixels: np.ndarray  # [B, H, W, 3] bytes
    labels: np.ndarray  # [B, patches, heads] bytes, NO_LABEL where a token is missing
    alive: np.ndarray  # [B, patches]
    text: np.ndarray  # [B, T]
    positions: np.ndarray  # [B, T], after the picture
    group: np.ndarray  # [B, T], -1 where there is no text; a token sees the picture and its own group
    targets: np.ndarray  # [B, T]: the token that follows, NOTHING outside answers
    weights: np.ndarray  # [B, T]
    question: np.ndarray  # [B, T]: number of the question in `tasks`, -1 for none
    about: np.ndarray  # of [B, T, patches] the places that each token is about, flat
    ahead: np.ndarray  # the same for the next token of the answer
    tasks: list[str]


def packed(scene: Scene, vocabulary: Vocabulary, rng: random.Random, chained: float = CHAINED) -> Packed:
    samples, grid = scene.samples, scene.grid
    n = len(samples)
    columns = [list(HEADS).index(name) for name in HEAD_NAMES]
    text, positions = np.full((n, N_TEXT), vocabulary.end, np.int16), np.zeros((n, N_TEXT), np.int16)
    group, question = np.full((n, N_TEXT), -1, np.int16), np.full((n, N_TEXT), -1, np.int32)
    targets, weights = np.full((n, N_TEXT), NOTHING, np.int16), np.zeros((n, N_TEXT), np.float32)
    pixels = np.stack([np.asarray(sample.image) for sample in samples])
    labels = np.stack([patch_labels(sample, grid)[:, columns] for sample in samples]).astype(np.uint8)
    alive = np.ones((n, grid.n), bool)
    if scene.holes:
        for b in range(n):
            alive[b] = ~missing(pixels[b], labels[b], rng)
        labels[~alive] = NO_LABEL
    tasks: list[str] = []
    pointed: dict[str, list[np.ndarray]] = {"about": [], "ahead": []}
    for b, sample in enumerate(samples):
        rows, found = lay_out(vocabulary, sample, rng.random() < chained, grid, N_TEXT)
        number = len(tasks) - 1
        for i, row in enumerate(rows):
            text[b, i], positions[b, i], group[b, i] = row.token, row.position - N_PREFIX, row.group
            targets[b, i], weights[b, i] = row.target, row.weight
            for name, patches in (("about", row.about), ("ahead", row.ahead)):
                if patches is not None:
                    pointed[name].append((b * N_TEXT + i) * grid.n + np.flatnonzero(patches & alive[b]))
            if row.target != NOTHING:
                if i == 0 or targets[b, i - 1] == NOTHING:
                    number += 1
                question[b, i] = number
        tasks += found
    empty = np.zeros(0, np.int64)
    about, ahead = (np.concatenate([empty, *pointed[name]]).astype(np.int32) for name in ("about", "ahead"))
    return Packed(
        grid.rows, grid.columns, scene.kind, scene.holes, pixels, labels, alive, text, positions, group, targets,
        weights, question, about, ahead, tasks,
    )  # fmt: skip


def missing(pixels: np.ndarray, labels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Which patches are left out: those that repeat, or, under noise, some of those with nothing on them."""
    found = repeated(pixels).ravel()
    if found.mean() < 0.05:
        found = (labels == 0).all(-1) & (np.random.default_rng(rng.getrandbits(32)).random(len(found)) < rng.random())
    if found.all():
        found[0] = False
    return found


class Drawers:
    """Processes that each have a stream of batches; pictures travel in memory that they share with this one.

    They are forked, so make them before the first use of a GPU. They end when this process does, however it ends.
    """

    def __init__(self, n: int, scenes: Callable[[int], Scenes], words: list[str]):
        self._slots: list[list[mmap.mmap]] = []
        self._pipes: list[Connection] = []
        self._processes = []
        context = multiprocessing.get_context("fork")
        for number in range(n):
            slots = [mmap.mmap(-1, SLOT_BYTES) for _ in range(SLOTS)]
            ours, theirs = context.Pipe()
            process = context.Process(target=_draw, args=(theirs, ours, slots, scenes, number, words), daemon=True)
            process.start()
            theirs.close()
            self._slots.append(slots)
            self._pipes.append(ours)
            self._processes.append(process)
        self._ready: deque[int] = deque()
        self.counts: Counter[str] = Counter()

    def take(self, timeout: float) -> tuple[Packed, Callable[[], None]] | None:
        """The next batch, whose pixels stay until the function beside it is called; None after so many seconds."""
        if not self._ready:
            alive = [pipe for pipe in self._pipes if not pipe.closed]
            if not alive:
                raise RuntimeError("all processes that draw have ended; their errors are above")
            self._ready.extend(self._pipes.index(pipe) for pipe in wait(alive, timeout))
        while self._ready:
            number = self._ready.popleft()
            try:
                slot, shape, batch = pickle.loads(self._pipes[number].recv_bytes())
            except (EOFError, OSError):
                self._pipes[number].close()
                continue
            n = int(np.prod(shape))
            batch.pixels = np.frombuffer(self._slots[number][slot], np.uint8, n).reshape(shape)
            self.counts[batch.kind] += 1
            return batch, partial(self._free, number, slot)
        return None

    def _free(self, number: int, slot: int) -> None:
        try:
            self._pipes[number].send_bytes(bytes([slot]))
        except OSError:
            self._pipes[number].close()

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)


def _draw(
    pipe: Connection,
    others: Connection,
    slots: list[mmap.mmap],
    scenes: Callable[[int], Scenes],
    number: int,
    words: list[str],
) -> None:
    others.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    free, stream = deque(range(len(slots))), stream_of(scenes(number), words, number)
    parent = os.getppid()
    for batch in stream:
        while not free:
            if pipe.poll(5):
                try:
                    free.append(pipe.recv_bytes()[0])
                except (EOFError, OSError):
                    os._exit(1)
            if os.getppid() != parent:  # killed: nobody will take what waits
                os._exit(1)
        slot = free.popleft()
        shape = batch.pixels.shape
        memory = np.frombuffer(slots[slot], np.uint8, batch.pixels.size)
        memory[:] = batch.pixels.ravel()
        batch.pixels = np.zeros(0, np.uint8)
        try:
            pipe.send_bytes(pickle.dumps((slot, shape, batch), protocol=5))
        except OSError:
            os._exit(1)


def stream_of(scenes: Scenes, words: list[str], seed: int) -> Iterator[Packed]:
    vocabulary, rng = Vocabulary(words), random.Random(seed)
    while True:
        yield packed(scenes.next(), vocabulary, rng)

"""What the demo model learns from on a GPU: batches of drawn pictures, web pages and plots, of many sizes.

All pictures of a batch have one size. A third of the batches has holes: tokens that repeat a neighbour are missing, as
pixel pruning leaves them out.
"""

from __future__ import annotations

import io
import random
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from training import pictures
from training.pages import page
from training.pictures import colours, fonts
from training.pointing import Grid
from training.renderers import plots, typefaces
from training.renderers.store import Reader
from training.student import TOKEN
from training.unanswerable import unanswerable

# how often a batch is of canvas pictures at their own size, smaller, larger, of web pages, of plots
MIXTURE = {"drawn": 0.42, "shrunk": 0.10, "grown": 0.18, "web": 0.21, "plot": 0.09}
TOKENS = 32768  # of all pictures of a batch
MOST_PICTURES = 192
SMALL = ((8, 8), (8, 10), (8, 12), (10, 8), (12, 8), (10, 12), (12, 10), (12, 12), (12, 14), (14, 12), (8, 16), (16, 8),
         (14, 16), (16, 14), (10, 16), (16, 10))  # fmt: skip
LARGE = ((16, 20), (20, 16), (20, 20), (16, 24), (24, 16), (24, 24), (20, 28), (28, 20), (24, 32), (32, 24), (32, 32),
         (16, 32), (32, 16))  # fmt: skip
PLOT_SIZES = ((16, 16), (20, 16), (24, 16), (16, 20), (24, 20), (32, 24))  # rows are the second
HOLES = 1 / 3
PAGES = 0.12  # of canvas pictures are full of text, for the encoder alone
UNKNOWN = 0.4  # pictures with a question that they do not answer, or two
MOST_QUESTIONS = 30
EXTRA_FAMILIES, DRAW_NEW_AFTER = 10, 1500  # fonts of this machine that a process draws with at a time; pictures
REMEMBERED = 64  # pictures whose questions are asked of others


@dataclass
class Scene:
    """A batch before it is made of arrays."""

    samples: list[pictures.Sample]
    grid: Grid
    holes: bool
    kind: str


class Scenes:
    """An endless stream of batches; each process has one, with seeds of its own."""

    def __init__(
        self,
        seed: int,
        pages: list[Reader],
        fonts_folder: Path | None,
        split: str = "train",
        tokens: int = TOKENS,
        mixture: dict[str, float] | None = None,
    ):
        self.rng, self.split, self.tokens = random.Random(f"scenes/{seed}"), split, tokens
        self.seed = 100_000_000 + seed * 10_000_000
        self.mixture = dict(mixture or MIXTURE)
        self.fonts = list(typefaces.families(fonts_folder, split).values()) if fonts_folder else []
        self.pages: dict[tuple[int, int], list[tuple[Reader, int]]] = {}
        for reader in pages:
            for number in range(len(reader)):
                self.pages.setdefault(reader.size(number), []).append((reader, number))
        if not self.pages:
            self.mixture.pop("web", None)
        if not self.fonts:
            self.mixture.pop("plot", None)
        self.others: deque[pictures.Sample] = deque(maxlen=REMEMBERED)

    def next(self) -> Scene:
        kind = self.rng.choices(list(self.mixture), list(self.mixture.values()))[0]
        samples, rows, columns = getattr(self, "_" + kind)()
        holes = self.rng.random() < HOLES
        for sample in samples:
            sample.questions = self.asked(sample)
        return Scene(samples, Grid(rows, columns, TOKEN), holes, kind)

    def asked(self, sample: pictures.Sample) -> list[pictures.Question]:
        """Its own questions, and now and then one that it does not answer."""
        questions = list(sample.questions)
        if self.split == "train" and questions and self.rng.random() < UNKNOWN:
            for _ in range(self.rng.choice((1, 1, 2))):
                question = unanswerable(self.rng, sample, self.others)
                if question:
                    questions.insert(self.rng.randint(0, len(questions)), question)
        if self.rng.random() < 0.2:
            self.others.append(replace(sample, image=None))
        return questions

    def count(self, rows: int, columns: int) -> int:
        return max(1, min(MOST_PICTURES, self.tokens // (rows * columns)))

    def canvas(self) -> pictures.Sample:
        rng = self.rng
        self.seed += 1
        if self.split != "train":
            return pictures.make(self.seed, self.split)
        if self.fonts and self.seed % DRAW_NEW_AFTER == 1:
            fonts.EXTRA[:] = rng.sample(self.fonts, min(EXTRA_FAMILIES, len(self.fonts)))
        if rng.random() < PAGES:
            return page(self.seed)
        sample = pictures.make(self.seed, self.split, most=MOST_QUESTIONS)
        if sample.kind == "document" or rng.random() < 0.1:
            sample.image = toned(rng, sample.image)
        return sample

    def _drawn(self) -> tuple[list[pictures.Sample], int, int]:
        side = pictures.SIZE // TOKEN
        return [self.canvas() for _ in range(self.count(side, side))], side, side

    def _shrunk(self) -> tuple[list[pictures.Sample], int, int]:
        rows, columns = self.rng.choice(SMALL)
        size = columns * TOKEN, rows * TOKEN
        found = [self.canvas() for _ in range(self.count(rows, columns))]
        return [placed(self.rng, sample, size, size, (0, 0)) for sample in found], rows, columns

    def _grown(self) -> tuple[list[pictures.Sample], int, int]:
        rows, columns = self.rng.choice(LARGE)
        return [self.onto_larger(self.canvas(), rows, columns) for _ in range(self.count(rows, columns))], rows, columns

    def onto_larger(self, sample: pictures.Sample, rows: int, columns: int) -> pictures.Sample:
        rng, width, height = self.rng, columns * TOKEN, rows * TOKEN
        largest = min(width, height) / pictures.SIZE
        scale = 1.0 if rng.random() < 0.4 else rng.uniform(1, largest)
        side = round(pictures.SIZE * scale)
        at = rng.randint(0, width - side), rng.randint(0, height - side)
        return placed(rng, sample, (side, side), (width, height), at)

    def _web(self) -> tuple[list[pictures.Sample], int, int]:
        rng = self.rng
        sizes = list(self.pages)
        columns, rows = rng.choices(sizes, [len(self.pages[size]) for size in sizes])[0]
        of_size = self.pages[columns, rows]
        target = (columns, rows)
        if rng.random() < 0.3:  # larger or smaller by a little
            near = [(c, r) for r, c in SMALL + LARGE if 0.75 <= c / columns <= 1.3 and 0.75 <= r / rows <= 1.3]
            target = rng.choice(near) if near else target
        size = target[0] * TOKEN, target[1] * TOKEN
        found = []
        for _ in range(self.count(target[1], target[0])):
            reader, number = rng.choice(of_size)
            sample = reader[number]
            if self.split == "train":
                sample.image = toned(rng, sample.image) if rng.random() < 0.3 else sample.image
                shift = (rng.randint(-9, 9), rng.randint(-9, 9)) if rng.random() < 0.7 else (0, 0)
            else:
                shift = (0, 0)
            found.append(placed(rng, sample, size, size, shift))
        return found, target[1], target[0]

    def _plot(self) -> tuple[list[pictures.Sample], int, int]:
        columns, rows = self.rng.choice(PLOT_SIZES)
        found = []
        paths = [path for pair in self.fonts for path in pair]
        for _ in range(max(1, self.count(rows, columns) // 2)):
            self.seed += 1
            found.append(plots.plot(self.seed, self.split, paths, (columns, rows)))
        return found, rows, columns


def placed(
    rng: random.Random, sample: pictures.Sample, inner: tuple[int, int], size: tuple[int, int], at: tuple[int, int]
) -> pictures.Sample:
    """A picture at another size, somewhere on paper of one colour: mostly that of its corner."""
    image = sample.image
    if image.size == inner == size and at == (0, 0):
        return sample
    x, y = inner[0] / image.width, inner[1] / image.height
    if inner != image.size:
        image = image.resize(inner, rng.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)))
    if image.size != size or at != (0, 0):
        corner = image.getpixel((0, 0))
        paper = corner if rng.random() < 0.7 else colours.shade(rng, rng.choice(list(colours.COLOURS)))
        larger = Image.new("RGB", size, paper)
        larger.paste(image, at)
        image = larger

    def moved(box: tuple[int, ...]) -> tuple[int, int, int, int]:
        x0, y0, x1, y1 = box
        return (round(x0 * x) + at[0], round(y0 * y) + at[1], round(x1 * x) + at[0], round(y1 * y) + at[1])

    chars = [(char, *moved(tuple(box))) for char, *box in sample.chars]
    shapes = [(kind, colour, *moved(tuple(box))) for kind, colour, *box in sample.shapes]
    return replace(sample, image=image, chars=chars, shapes=shapes)


def toned(rng: random.Random, image: Image.Image) -> Image.Image:
    """Paler, or packed as a JPEG."""
    draw = rng.random()
    if draw < 0.3:
        mean = Image.new("RGB", image.size, image.resize((1, 1)).getpixel((0, 0)))
        return Image.blend(image, mean, rng.uniform(0.1, 0.55))
    if draw < 0.5:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(40, 95))
        return Image.open(packed).convert("RGB")
    return image


def repeated(pixels: np.ndarray) -> np.ndarray:
    """[rows, columns]: which tokens of [H, W, 3] pixel pruning leaves out, with tau 0."""
    rows, columns = pixels.shape[0] // TOKEN, pixels.shape[1] // TOKEN
    tokens = pixels.reshape(rows, TOKEN, columns, TOKEN, 3).transpose(0, 2, 1, 3, 4).reshape(rows, columns, -1)
    like_left, like_upper = np.zeros((rows, columns), bool), np.zeros((rows, columns), bool)
    like_left[:, 1:] = (tokens[:, 1:] == tokens[:, :-1]).all(-1)
    like_upper[1:] = (tokens[1:] == tokens[:-1]).all(-1)
    # an edge that runs down: the left neighbour is like the one above it, and the upper is not
    left_is_like_its_upper = np.zeros((rows, columns), bool)
    left_is_like_its_upper[1:, 1:] = like_upper[1:, :-1]
    across = np.zeros((rows, columns), bool)  # the upper neighbour equals the left one
    across[1:, 1:] = (tokens[:-1, 1:] == tokens[1:, :-1]).all(-1)
    from_upper = left_is_like_its_upper & ~across
    from_upper[1:, 0] = True
    return np.where(from_upper, like_upper, like_left)

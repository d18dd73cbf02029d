"""Charts of matplotlib, with the box of every letter and bar."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFont

from training import pictures
from training.pictures import colours, words
from training.pictures.canvas import CHARACTERS, Canvas
from training.pictures.charts import Data, ask, ask_colours, make_data
from training.pictures.quiz import Quiz
from training.renderers.webpages import TOKEN

STYLES = ("default", "ggplot", "bmh", "fivethirtyeight", "grayscale", "dark_background", "Solarize_Light2", "fast")
HELD_OUT_STYLES = ("seaborn-v0_8-whitegrid", "tableau-colorblind10")  # for tests alone
DPI = 100
FEWEST, MOST = 5, 14


@lru_cache(maxsize=256)
def measured(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def plot(seed: int, split: str, fonts: list[Path], size: tuple[int, int]) -> pictures.Sample:
    """The chart of a seed; size: columns and rows of tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, style

    rng = random.Random(f"plot/{split}/{seed}")
    np.random.seed(seed % 2**32)
    with style.context(rng.choice(STYLES if split == "train" else HELD_OUT_STYLES)):
        figure, axes = pyplot.subplots(figsize=(size[0] * TOKEN / DPI, size[1] * TOKEN / DPI), dpi=DPI)
        try:
            drawn = _Plot(rng, split, str(rng.choice(fonts)), figure, axes, min(size))
            return drawn.sample(size)
        finally:
            pyplot.close(figure)


class _Plot:
    def __init__(self, rng: random.Random, split: str, font: str, figure: Any, axes: Any, least: int):
        from matplotlib.font_manager import FontProperties

        self.rng, self.figure, self.axes, self.font = rng, figure, axes, font
        self.properties = FontProperties(fname=font, size=rng.uniform(10, 15 if least < 20 else 22) * 72 / DPI * 1.05)
        self.canvas = Canvas(rng, split)  # for its dice and word lists
        self.quiz, self.texts, self.shapes = Quiz(rng), [], []
        self.layout = rng.choice(("bars", "bars", "lying", "line", "pie"))

    def text(self, text: Any) -> None:
        """One that is drawn in the chosen font, and kept."""
        text.set_fontproperties(self.properties)
        self.texts.append(text)

    def sample(self, size: tuple[int, int]) -> pictures.Sample:
        data = make_data(self.canvas, self.rng.randint(3, 6), 8)
        titled = self.rng.random() < 0.75
        if titled:
            self.text(self.axes.set_title(data.title))
        tints = self._tints(len(data.values))
        artists = getattr(self, "_" + self.layout)(data, tints)
        bar = {"line": "point", "pie": "slice"}.get(self.layout, "bar")
        if self.layout == "pie":
            self._ask_pie(data)
        else:
            ask(self.canvas, self.quiz, data, bar, titled)
        if len(set(tints)) > 1:
            ask_colours(self.quiz, data, tints, bar)
        self.figure.tight_layout(pad=0.6)
        self.figure.canvas.draw()
        image = Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy())
        height = image.height
        chars = [char for text in self.texts for char in self._letters(text, height)]
        shapes = []
        for artist, tint in zip(artists, tints, strict=True):
            box = artist.get_window_extent(self.figure.canvas.get_renderer())
            kind = "slice" if self.layout == "pie" else "bar"
            shapes.append((kind, tint, *map(round, (box.x0, height - box.y1, box.x1, height - box.y0))))
        return pictures.Sample(image, self.quiz.choose(MOST), chars, shapes, "plot", self.layout)

    def _tints(self, count: int) -> list[str]:
        names = [name for name in colours.COLOURS if name not in ("white", "black", "gray")]
        if self.layout == "pie" or (self.layout != "line" and self.rng.random() < 0.5):
            return self.rng.sample(names, count)
        return [self.rng.choice(names)] * count

    def _rgb(self, tint: str) -> tuple[float, ...]:
        return tuple(part / 255 for part in colours.shade(self.rng, tint))

    def _letters(self, text: Any, height: int) -> list[tuple[str, int, int, int, int]]:
        """Boxes of the letters of a level line, as wide as the font has them."""
        shown = text.get_text()
        if not shown.strip():
            return []
        box = text.get_window_extent(self.figure.canvas.get_renderer())
        font = measured(self.font, 40)
        whole = font.getlength(shown) or 1
        ends = [box.x0 + box.width * font.getlength(shown[:i]) / whole for i in range(len(shown) + 1)]
        top, bottom = round(height - box.y1), round(height - box.y0)
        return [
            (char, round(ends[i]), top, round(ends[i + 1]), bottom)
            for i, char in enumerate(shown)
            if char in CHARACTERS
        ]

    def _named(self, axis: Any, places: Any, labels: list[str]) -> None:
        axis.set_ticks(list(places), labels)
        for text in axis.get_ticklabels():
            self.text(text)

    def _measured(self, axis: Any, data: Data) -> None:
        """The axis of values: with numbers when they are not printed."""
        if data.step:
            axis.set_ticks(list(range(0, max(data.values) + data.step + 1, data.step)))
            for text in axis.get_ticklabels():
                self.text(text)
        else:
            axis.set_ticks([])

    def _bars(self, data: Data, tints: list[str]) -> list[Any]:
        places = range(len(data.values))
        bars = self.axes.bar(places, data.values, self.rng.uniform(0.4, 0.95), color=list(map(self._rgb, tints)))
        self._named(self.axes.xaxis, places, data.labels)
        self._measured(self.axes.yaxis, data)
        if not data.step:
            for text in self.axes.bar_label(bars, padding=2):
                self.text(text)
        return list(bars)

    def _lying(self, data: Data, tints: list[str]) -> list[Any]:
        places = range(len(data.values))
        bars = self.axes.barh(places, data.values, self.rng.uniform(0.4, 0.9), color=list(map(self._rgb, tints)))
        self.axes.invert_yaxis()
        self.axes.set_xlim(0, max(data.values) * 1.18)
        self._named(self.axes.yaxis, places, data.labels)
        self._measured(self.axes.xaxis, data)
        if not data.step:
            for text in self.axes.bar_label(bars, padding=3):
                self.text(text)
        return list(bars)

    def _line(self, data: Data, tints: list[str]) -> list[Any]:
        places = list(range(len(data.values)))
        rgb = self._rgb(tints[0])
        self.axes.plot(places, data.values, marker=self.rng.choice("os^D"), color=rgb, linewidth=self.rng.uniform(1, 3))
        self.axes.margins(0.15, 0.2)
        self._named(self.axes.xaxis, places, data.labels)
        self._measured(self.axes.yaxis, data)
        if not data.step:
            for place, value in zip(places, data.values, strict=True):
                label = self.axes.annotate(str(value), (place, value), (0, 6), textcoords="offset points", ha="center")
                self.text(label)
        spread = (max(data.values) - min(data.values)) * 0.04
        return [self.axes.axvspan(place - 0.1, place + 0.1, alpha=0, ymin=0, ymax=spread and 1) for place in places]

    def _pie(self, data: Data, tints: list[str]) -> list[Any]:
        whole = sum(data.values)
        data.values = [round(100 * value / whole) for value in data.values]
        wedges, texts = self.axes.pie(
            data.values, labels=[f"{label} {value}%" for label, value in zip(data.labels, data.values, strict=True)],
            colors=list(map(self._rgb, tints)), startangle=self.rng.randrange(360), radius=0.8,
        )[:2]  # fmt: skip
        for text in texts:
            self.text(text)
        return list(wedges)

    def _ask_pie(self, data: Data) -> None:
        quiz, pairs = self.quiz, sorted(zip(data.values, data.labels, strict=True))
        for value, label in pairs:
            quiz.add("chart/share", f"{value}%", word=label)
        if pairs[-1][0] > pairs[-2][0] + 1:
            quiz.add("chart/extreme", pairs[-1][1], most="largest", bar="slice")
        if pairs[1][0] > pairs[0][0] + 1:
            quiz.add("chart/extreme", pairs[0][1], most="smallest", bar="slice")
        quiz.add("count/things", len(pairs), things="slices")
        there = quiz.coin()
        word = self.rng.choice(data.labels) if there else words.invented(self.rng).capitalize()
        quiz.add("existence/word", "yes" if there else "no", word=word)

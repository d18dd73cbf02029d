"""Colours that have a name, and backgrounds on which they can be told apart."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from PIL import Image, ImageChops

RGB = tuple[int, int, int]
SIZE = 320

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "green": (40, 155, 60),
    "blue": (40, 85, 215),
    "yellow": (245, 212, 40),
    "orange": (245, 135, 25),
    "purple": (135, 55, 180),
    "pink": (245, 130, 185),
    "brown": (125, 75, 35),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
    "gray": (140, 140, 140),
}

_LIGHT = [(255, 255, 255), (246, 246, 246), (238, 243, 250), (251, 247, 236), (236, 246, 238), (247, 237, 242)]
_DARK = [(28, 28, 34), (18, 30, 56), (48, 48, 48), (24, 46, 40)]


def shade(rng: random.Random, name: str) -> RGB:
    """The named colour, not always quite the same, but gray without a tint."""
    both = rng.randint(-12, 12)
    tinted = name not in ("black", "white", "gray")
    return tuple(min(255, max(0, part + (rng.randint(-12, 12) if tinted else both))) for part in COLOURS[name])


def distance(a: RGB, b: RGB) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def luminance(colour: RGB) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def readable(rng: random.Random, paper: RGB) -> RGB:
    """An ink for that paper: mostly black or white, sometimes a strong colour."""
    light = luminance(paper) > 125
    if rng.random() < 0.6:
        return plain_ink(paper)
    names = ("blue", "red", "purple", "brown", "green") if light else ("yellow", "white", "pink", "orange")
    inks = [shade(rng, name) for name in names]
    inks = [ink for ink in inks if abs(luminance(ink) - luminance(paper)) > 90]
    return rng.choice(inks) if inks else plain_ink(paper)


def plain_ink(paper: RGB) -> RGB:
    return (15, 15, 15) if luminance(paper) > 120 else (250, 250, 250)


def visible_on(paper: RGB, least: float = 95) -> list[str]:
    return [name for name, rgb in COLOURS.items() if distance(rgb, paper) > least]


def legible_on(paper: RGB) -> list[str]:
    """Colours for letters."""
    return [name for name, rgb in COLOURS.items() if abs(luminance(rgb) - luminance(paper)) > 70]


@cache
def _ramp(quarter_turns: int) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((SIZE, SIZE))
    return ramp.rotate(90 * quarter_turns)


@cache
def _grain(index: int) -> Image.Image:
    noise = np.random.default_rng(index).normal(128, (3, 5, 8, 12)[index % 4], (SIZE + 64, SIZE + 64, 1))
    return Image.fromarray(np.broadcast_to(noise.clip(0, 255).astype(np.uint8), (*noise.shape[:2], 3)).copy())


def with_grain(rng: random.Random, image: Image.Image) -> Image.Image:
    """The picture as a scanner or a camera would add noise to it."""
    x, y = rng.randrange(64), rng.randrange(64)
    return ImageChops.add(image, _grain(rng.randrange(12)).crop((x, y, x + SIZE, y + SIZE)), 1, -128)


def background(rng: random.Random, dark: float = 0.15) -> tuple[Image.Image, RGB]:
    """A picture without anything on it, and its mean colour. dark: how often it is dark."""
    colours = _DARK if rng.random() < dark else _LIGHT
    colour = rng.choice(colours)
    if rng.random() < 0.6:
        return Image.new("RGB", (SIZE, SIZE), colour), colour
    step = rng.choice((-22, -14, 14, 22)) if colours is _DARK else -rng.randint(10, 28)
    other = tuple(min(255, max(0, part + step)) for part in colour)
    first, second = Image.new("RGB", (SIZE, SIZE), colour), Image.new("RGB", (SIZE, SIZE), other)
    image = Image.composite(first, second, _ramp(rng.randrange(4)))
    return image, tuple((a + b) // 2 for a, b in zip(colour, other, strict=True))

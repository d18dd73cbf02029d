"""Generated pictures, so that calibration works without any: text, charts, shapes, scenes. Real ones are better."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 448
WORDS = (  # noqa: SIM905
    "market harbour window seven bridge morning copper letter winter signal garden number train island paper "
    "yellow doctor kitchen river station price school north engine table minute record silver valley question"
).split()
COLORS = {"red": (200, 40, 40), "blue": (40, 80, 200), "green": (40, 150, 70), "orange": (235, 140, 30),
          "purple": (130, 60, 170), "black": (30, 30, 30)}  # fmt: skip
SHAPES = ("circle", "square", "triangle")


def generate(count: int, seed: int) -> list[tuple[str, Image.Image, str]]:
    """Names, pictures and questions; the same for the same seed."""
    kinds: tuple[Callable[[random.Random], tuple[Image.Image, str]], ...] = (_page, _chart, _shapes, _scene)
    made = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        image, question = kinds[number % len(kinds)](rng)
        made.append((f"generated {number + 1} ({kinds[number % len(kinds)].__name__.strip('_')})", image, question))
    return made


def _page(rng: random.Random) -> tuple[Image.Image, str]:
    """A page of text with a headline and a price."""
    image = Image.new("RGB", (SIDE, SIDE), (250, 248, 242))
    draw = ImageDraw.Draw(image)
    price = f"{rng.randint(2, 99)}.{rng.randint(0, 99):02}"
    draw.text((28, 24), " ".join(rng.sample(WORDS, 2)).title(), (20, 20, 20), ImageFont.load_default(36))
    for line in range(9):
        words = " ".join(rng.choice(WORDS) for _ in range(6))
        draw.text((28, 84 + 30 * line), words[:44], (50, 50, 50), ImageFont.load_default(18))
    draw.text((28, 380), f"Total: {price}", (150, 20, 20), ImageFont.load_default(32))
    return image, "What is the total on this page?"


def _chart(rng: random.Random) -> tuple[Image.Image, str]:
    """Bars with names."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    names = rng.sample(WORDS, 5)
    draw.text((30, 16), f"{rng.choice(WORDS).title()} by {rng.choice(WORDS)}", (20, 20, 20), ImageFont.load_default(24))
    draw.line((48, 70, 48, 390, 430, 390), (60, 60, 60), 2)
    for bar, name in enumerate(names):
        height, left = rng.randint(30, 300), 66 + 74 * bar
        draw.rectangle((left, 390 - height, left + 48, 389), rng.choice(list(COLORS.values())))
        draw.text((left - 4, 398), name, (40, 40, 40), ImageFont.load_default(15))
        draw.text((left + 8, 368 - height), str(height), (40, 40, 40), ImageFont.load_default(15))
    return image, "Which bar of the chart is the highest, and what is its value?"


def _shapes(rng: random.Random) -> tuple[Image.Image, str]:
    """A few shapes on a plain ground, most of which is empty."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(200, 255) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for cell in rng.sample(range(9), rng.randint(2, 5)):
        x, y, r = 75 + 149 * (cell % 3), 75 + 149 * (cell // 3), rng.randint(24, 60)
        color = COLORS[rng.choice(list(COLORS))]
        match rng.choice(SHAPES):
            case "circle":
                draw.ellipse((x - r, y - r, x + r, y + r), color)
            case "square":
                draw.rectangle((x - r, y - r, x + r, y + r), color)
            case _:
                draw.polygon((x, y - r, x + r, y + r, x - r, y + r), color)
    return image, "Which shapes are in the picture, and what are their colors?"


def _scene(rng: random.Random) -> tuple[Image.Image, str]:
    """Hills under a sky with clouds and a grain, as uneven as a photograph."""
    noise = np.random.default_rng(rng.randrange(1 << 32))
    y = np.linspace(0, 1, SIDE)[:, None, None]
    top, low = (np.array([rng.randint(*span) for span in spans]) for spans in
                (((90, 140), (140, 190), (210, 250)), ((220, 250), (200, 230), (170, 220))))  # fmt: skip
    pixels = top * (1 - y) + low * y + np.zeros((SIDE, SIDE, 3))
    pixels += 40 * _clouds(noise)[..., None]
    x = np.arange(SIDE)
    for hill in range(3):
        wave, shift = rng.uniform(0.5, 1.6), rng.uniform(0, math.tau)
        edge = SIDE * (0.5 + 0.15 * hill) + 30 * np.sin(x / SIDE * math.tau * wave + shift) + 12 * _clouds(noise)[hill]
        ground = np.arange(SIDE)[:, None] > edge[None, :]
        color = np.array([rng.randint(30, 110), rng.randint(80, 150) - 20 * hill, rng.randint(30, 70)])
        pixels[ground] = (color * (1 + 0.25 * _clouds(noise)[..., None]))[ground]
    pixels += noise.normal(0, 5, pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    left, base = rng.randint(40, 320), rng.randint(280, 340)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, base, left + 70, base + 60), (170, 120, 90))
    draw.polygon((left - 10, base, left + 35, base - 40, left + 80, base), (120, 40, 30))
    draw.rectangle((left + 25, base + 25, left + 45, base + 60), (70, 40, 30))
    return image.filter(ImageFilter.GaussianBlur(0.8)), "Describe the scene in one sentence."


def _clouds(noise: np.random.Generator) -> np.ndarray:
    """Smooth noise of several sizes, about -1 to 1."""
    total = np.zeros((SIDE, SIDE))
    for cells, weight in ((4, 0.55), (12, 0.3), (40, 0.15)):
        coarse = Image.fromarray(noise.uniform(-1, 1, (cells, cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return total

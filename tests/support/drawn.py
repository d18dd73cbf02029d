"""Drawn pages and screens, and the rules in numpy by which parts of them stay out."""

from __future__ import annotations

import itertools

import numpy as np


def entering(picture: np.ndarray, side: int, tau: float = 0) -> list[int]:
    """The patches of `side` pixels that enter, row by row: all, where fewer than one in ten would stay out."""
    height, width, _ = picture.shape
    columns = width // side
    stands: dict[tuple[int, int], np.ndarray] = {}  # what stands for each patch

    def alike(a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.abs(a.astype(int) - b).max() <= tau)

    out = []
    for y in range(height // side):
        for x in range(columns):
            patch = picture[y * side : (y + 1) * side, x * side : (x + 1) * side]
            left, up, corner = (stands.get(place) for place in ((y, x - 1), (y - 1, x), (y - 1, x - 1)))
            guess = up if left is None else left
            if corner is not None and alike(corner, left) and not alike(corner, up):
                guess = up
            if guess is None or not alike(patch, guess):
                out.append(y * columns + x)
                guess = patch
            stands[y, x] = guess
    rows = height // side
    for y, x in itertools.product(range(0, rows, 2), range(0, columns, 2)):
        block = [b * columns + a for b in range(y, min(y + 2, rows)) for a in range(x, min(x + 2, columns))]
        if not set(block) & set(out):
            out.append(block[-1])
    return sorted(out) if 10 * (rows * columns - len(out)) >= rows * columns else list(range(rows * columns))


def page(width: int, height: int, side: int) -> np.ndarray:
    """White, with margins and a few lines of something like text."""
    picture = np.full((height, width, 3), 255, np.uint8)
    rng = np.random.default_rng(3)
    for top in range(side, height - side, 2 * side):
        right = int(rng.integers(width // 2, width - side))
        strokes = rng.integers(0, 90, (side - 6, len(range(side, right, 2)), 1))
        picture[top + 3 : top + side - 3, side:right:2] = strokes
    return picture


def screen(width: int, height: int, side: int) -> np.ndarray:
    """A title bar, a list with equal rows, icons and a button."""
    picture = np.full((height, width, 3), (240, 240, 245), np.uint8)
    picture[: side - 4] = (40, 60, 120)
    picture[side:, : 2 * side] = (220, 225, 230)
    for top in range(side, height, side):
        picture[top + 8 : top + 14, 6:40] = (30, 30, 30)
    rng = np.random.default_rng(4)
    for top in range(side, height - side, side):
        picture[top + 2 : top + side - 2, width // 2 : width - side : 3] = rng.integers(0, 256, 3)
    picture[-side - 8 : -12, -3 * side : -10] = (200, 60, 40)
    return picture


def nearly(picture: np.ndarray) -> np.ndarray:
    """With a level more or less here and there, as after JPEG."""
    delta = np.random.default_rng(5).integers(-1, 2, picture.shape)
    return np.clip(picture.astype(int) + delta, 0, 255).astype(np.uint8)


def coverage(rows: np.ndarray, keep: float) -> list[int]:
    """Farthest-point sampling by cosine, from the last row on."""
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    chosen = [len(rows) - 1]
    while len(chosen) < int(keep * len(rows)):
        nearest = (unit @ unit[chosen].T).max(axis=1)
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
    return sorted(chosen)

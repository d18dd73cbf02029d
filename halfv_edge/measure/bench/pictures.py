"""Pictures to measure with: of pixels for an encoder, and of embeddings where the encoder is left out."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = ("the", "of", "and", "invoice", "date", "total", "amount", "order", "number", "customer", "payment", "due")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft blobs of colour under a sensor's noise, because of which no two patches of a photo are the same."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    noisy = smooth + rng.normal(0, 2, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def page(width: int, height: int, seed: int = 0) -> Image.Image:
    """Black on white: a heading and paragraphs between margins, as of a letter that fills a sheet."""
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    size, margin = max(8, width // 56), width // 12
    body, heading = ImageFont.load_default(size), ImageFont.load_default(2 * size)
    draw.text((margin, margin), " ".join(rng.choices(WORDS, k=4)).capitalize(), "black", heading)
    y = margin + 4 * size
    while y < height - margin - size:
        for _ in range(rng.randint(2, 6)):
            words: list[str] = []
            while draw.textlength(" ".join(words), body) < width - 3 * margin:
                words.append(rng.choice(WORDS))
            if y < height - margin - size:
                draw.text((margin, y), " ".join(words), "black", body)
            y += size * 3 // 2
        y += size
    return image


DRAWINGS = {"photo": photo, "page": page}


def random_image(n: int, n_embd_inp: int, seed: int = 0) -> np.ndarray:
    """Embeddings [n, n_embd_inp] of an imaginary image: a few clusters, so that coverage has something to choose."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, n_embd_inp))
    spread = rng.uniform(0.3, 1.0, (n, 1))
    return (0.7 * centres[rng.integers(0, 8, n)] + spread * rng.standard_normal((n, n_embd_inp))).astype(np.float32)


def grid_positions(start: int, rows: int, cols: int) -> np.ndarray:
    """M-RoPE positions [4, rows * cols] of an image; the text after it continues at start + max(rows, cols)."""
    y, x = np.divmod(np.arange(rows * cols, dtype=np.int32), np.int32(cols))
    return np.stack([np.full_like(y, start), start + y, start + x, np.zeros_like(y)]).astype(np.int32)

"""Pictures to measure with: of pixels for an encoder, and of embeddings where the encoder is left out."""

from __future__ import annotations

import numpy as np
from PIL import Image


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse blocks of colour."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


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

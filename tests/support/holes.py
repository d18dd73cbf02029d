"""Patches that stay out of the encoder or of the language model: rules in numpy, pictures, and what transformers makes
of it.

The reference computes with all patches and all visual tokens, and forbids every look at those that stay out.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tests.support import hf_reference
from tests.support.mtmd_prompt import PromptRun

QWEN = hf_reference.QWEN


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


def noise(width: int, height: int, side: int) -> np.ndarray:
    return hf_reference.random_picture(width, height)


PICTURES = {"page": page, "screen": screen, "noise": noise}


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


@torch.no_grad()
def llava_logits(model: Any, seen: PromptRun, picture: np.ndarray, kept: list[int], n_rows: int) -> np.ndarray:
    """Of the last token, where the language model sees some of the rows, at their own places in the prompt."""
    ids: list[int] = []
    sees: list[int] = []
    for piece in seen.pieces:
        is_text = isinstance(piece, list)
        ids += piece if is_text else [model.config.image_token_index] * n_rows
        sees += [1] * len(piece) if is_text else [int(i in set(kept)) for i in range(n_rows)]
    pixels = hf_reference.normalised(picture, hf_reference.CLIP_MEAN, hf_reference.CLIP_STD)[None]
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([sees])}
    return model(**given, pixel_values=pixels, position_ids=torch.arange(len(ids))[None]).logits[0, -1].numpy()


@torch.no_grad()
def logits(
    family: str, model: Any, seen: PromptRun, picture: np.ndarray, entered: list[int], encoder_sees_all: bool = False
) -> np.ndarray:
    """Of the last token, for the prompt that llama.cpp saw."""
    patches, grid = hf_reference.qwen_patches(picture, QWEN[family])
    _, rows, columns = (int(n) for n in grid[0])
    rows, columns = rows // 2, columns // 2
    ids: list[int] = []
    positions: list[tuple[int, int, int]] = []
    sees: list[int] = []
    at = 0
    for piece in seen.pieces:
        if isinstance(piece, list):
            ids += piece
            positions += [(at + i,) * 3 for i in range(len(piece))]
            sees += [1] * len(piece)
            at += len(piece)
        else:
            assert len(piece) == len(entered)
            ids += [model.config.image_token_id] * (rows * columns)
            positions += [(at, at + y, at + x) for y in range(rows) for x in range(columns)]
            sees += [int(i in set(entered)) for i in range(rows * columns)]
            at += max(rows, columns)
    given = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": patches,
        "image_grid_thw": grid,
        "position_ids": torch.tensor(positions).T[:, None],
        "attention_mask": torch.tensor([sees]),
    }
    with contextlib.nullcontext() if encoder_sees_all else _blind_to(family, model, rows, columns, entered):
        return model(**given).logits[0, -1].numpy()


@contextlib.contextmanager
def _blind_to(family: str, model: Any, rows: int, columns: int, entered: list[int]) -> Iterator[None]:
    """No patch in the vision encoder attends to one that stays out."""
    order = [(y, x) for y in range(rows) for x in range(columns)]
    if family == "qwen2_5_vl":  # window by window
        side = model.config.vision_config.window_size // QWEN[family] // 2
        order.sort(key=lambda place: (place[0] // side, place[1] // side))
    inside = torch.tensor([y * columns + x in set(entered) for y, x in order]).repeat_interleave(4)
    blocks = (model.model.visual if hasattr(model.model, "visual") else model.visual).blocks
    former = [block.attn.forward for block in blocks]
    for block in blocks:
        block.attn.forward = masked(block.attn, inside)
    try:
        yield
    finally:
        for block, forward in zip(blocks, former, strict=True):
            block.attn.forward = forward


def masked(attention: Any, inside: torch.Tensor) -> Any:
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision

    def forward(hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: Any, **_: Any) -> Any:
        n = len(hidden_states)
        q, k, v = attention.qkv(hidden_states).reshape(n, 3, attention.num_heads, -1).permute(1, 0, 2, 3)
        q, k = rotate(q, k, *position_embeddings)
        part = torch.bucketize(torch.arange(n), cu_seqlens, right=True)
        # those that stay out may look: a row without anything to see would be no number
        allowed = (part[:, None] == part) & (inside | ~inside[:, None])
        scores = torch.einsum("qhd,khd->hqk", q, k) * attention.head_dim**-0.5
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        return attention.proj(torch.einsum("hqk,khd->qhd", weights, v).reshape(n, -1))

    return forward

"""One conversation for both: the client of llama.cpp and the torch reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np
import pruned
from client import Client
from reference.halfv_torch import Image, Prepare, Reference, Segment, Text
from tiny_models import grid_positions, tiny_image

PREFIX = [1, 5, 6, 7]
QUESTION = list(range(260, 272))
NEXT_TOKENS = [7, 300, 42]


def picture(reference: Reference, start: int, rows: int, cols: int, seed: int = 0, causal: bool = True) -> Image:
    embd = tiny_image(rows * cols, reference.n_embd_inp, seed)
    return Image(embd, grid_positions(start, rows, cols) if reference.is_mrope else None, causal)


def make_prompt(
    reference: Reference, grids: Sequence[tuple[int, int]], seed: int = 0, causal: bool = True
) -> list[Segment]:
    """Text, then for each grid a picture and text."""
    segments: list[Segment] = [Text(PREFIX)]
    start = len(PREFIX)
    for index, (rows, cols) in enumerate(grids):
        segments.append(picture(reference, start, rows, cols, 100 * seed + index, causal))
        segments.append(Text(QUESTION[index:]))
        # only M-RoPE pictures have positions of their own
        start += max(rows, cols) + len(QUESTION) - index
    return segments


def feed(client: Client, segments: Sequence[Segment]) -> np.ndarray:
    """The logits of the last token."""
    for segment in segments:
        if isinstance(segment, Prepare):
            pruned.prepare(client)
        elif isinstance(segment, Image):
            llama_cpp.llama_set_causal_attn(client.ctx, segment.causal)
            client.image(segment.embd, segment.pos)
            llama_cpp.llama_set_causal_attn(client.ctx, True)
        else:
            if segment.topup:
                pruned.topup(client)
            client.text(segment.ids, logits_last=segment.asks or segment is segments[-1], pos=segment.pos)
    return client.logits()


def assert_agree(
    client: Client,
    reference: Reference,
    segments: Sequence[Segment],
    profile: Mapping[str, Any],
    atol: float = 1e-4,
) -> None:
    """Kept sets and cells are identical, the logits of the last token and of some more are close."""
    expected = reference.run(segments, profile)
    logits = feed(client, segments)
    for stage, chosen in ((2, expected.kept), (3, expected.deep)):
        for image, indices in enumerate(chosen):
            np.testing.assert_array_equal(pruned.kept(client, image, stage), indices, f"image {image}, stage {stage}")
    stages = [0, profile["ivr.layer"], profile["ssr.layer"]]
    held = [reference.kv[layer][0].shape[1] if layer < reference.n_layer else 0 for layer in stages]
    np.testing.assert_array_equal(list(pruned.stats(client).kv_cells), held, "cells per stage")
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=atol)
    for token in NEXT_TOKENS:
        np.testing.assert_allclose(client.decode(token), reference.decode(token), rtol=0, atol=atol)


def nmse(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(((actual - expected) ** 2).sum() / (expected**2).sum())

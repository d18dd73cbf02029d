"""One conversation for both: the client of llama.cpp and the torch reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.reference.halfv_torch import Image, Prepare, Reference, Result, Segment, Text
from tests.support.tiny_models import DROP, FREEZE, grid_positions, make_tiny, tiny_image

PREFIX = [1, 5, 6, 7]
QUESTION = list(range(260, 272))
NEXT_TOKENS = [7, 300, 42]

N_LAYER = 6
MODES = {
    "ivr-only": FREEZE | {"ssr.layer": N_LAYER},
    "ssr-only-freeze": FREEZE | {"ivr.keep": 1.0},
    "ssr-only-top": DROP | {"ivr.keep": 1.0},
    "freeze": FREEZE,
    "freeze-and-update": FREEZE | {"ssr.update": 0.1},
    "top": DROP,
    "drop-all": FREEZE | {"ssr.rest": "dropped"},
    "update-all": FREEZE | {"ssr.update": 1.0},
    "question": DROP | {"ivr.query": "question"},
}

Model = tuple[Path, Reference]


def model_maker(folder: Path) -> Callable[..., Model]:
    """Makes each model once."""
    made: dict[str, Model] = {}

    def make(arch: str, **shape: Any) -> Model:
        key = repr((arch, shape))
        if key not in made:
            path = make_tiny(folder / f"{len(made)}.gguf", arch, n_layer=N_LAYER, **shape)
            made[key] = path, Reference(path)
        return made[key]

    return make


def connect(path: Path, profile: Mapping[str, Any] | None, undo_bytes: int | None = None, **options: Any) -> Client:
    client = Client(path, on_model=lambda model: pruned.set_profile(model, profile), **options)
    if undo_bytes is not None:
        pruned.set_undo_bytes(client, undo_bytes)
    return client


def picture(reference: Reference, rows: int, cols: int, seed: int = 0, causal: bool = True) -> Image:
    embd = tiny_image(rows * cols, reference.n_embd_inp, seed)
    return Image(embd, grid_positions(0, rows, cols) if reference.is_mrope else None, causal)


def placed(segments: Sequence[Segment]) -> list[Segment]:
    """With the positions of M-RoPE pictures, wherever they were made for, following what comes before."""
    result: list[Segment] = []
    start = 0
    for segment in segments:
        if isinstance(segment, Image) and segment.pos is not None:
            pos = segment.pos.copy()
            pos[:3] += start - pos[0, 0]
            segment = dataclasses.replace(segment, pos=pos)
            start = int(pos.max()) + 1
        elif not isinstance(segment, Prepare):
            start += len(segment.ids if isinstance(segment, Text) else segment.embd)
        result.append(segment)
    return result


def make_prompt(
    reference: Reference, grids: Sequence[tuple[int, int]], seed: int = 0, causal: bool = True
) -> list[Segment]:
    """Text, then for each grid a picture and text."""
    segments: list[Segment] = [Text(PREFIX)]
    for index, (rows, cols) in enumerate(grids):
        segments += [picture(reference, rows, cols, 100 * seed + index, causal), Text(QUESTION[index:])]
    return placed(segments)


def make_prepared(reference: Reference, grids: Sequence[tuple[int, int]]) -> list[Segment]:
    """A picture that is prepared before its question, and a second question that is topped up."""
    start, shown, question = make_prompt(reference, grids)
    return [start, shown, Prepare(), Text(question.ids, asks=True), Text(range(30, 40), topup=True)]


def tell(client: Client, segment: Segment, asks: bool = False) -> None:
    if isinstance(segment, Prepare):
        pruned.prepare(client)
    elif isinstance(segment, Image):
        llama_h.llama_set_causal_attn(client.ctx, segment.causal)
        client.image(segment.embd, segment.pos)
        llama_h.llama_set_causal_attn(client.ctx, True)
    else:
        if segment.topup:
            pruned.topup(client)
        client.text(segment.ids, logits_last=asks or segment.asks, pos=segment.pos)


def feed(client: Client, segments: Sequence[Segment]) -> np.ndarray:
    """The logits of the last token."""
    for segment in segments[:-1]:
        tell(client, segment)
    tell(client, segments[-1], asks=True)
    return client.logits()


def assert_agree(
    client: Client,
    reference: Reference,
    segments: Sequence[Segment],
    profile: Mapping[str, Any],
    atol: float = 1e-4,
) -> Result:
    """Kept sets and cells are identical, the logits of the last token and of some more are close."""
    expected = reference.run(segments, profile)
    logits = feed(client, segments)
    for stage, chosen in enumerate((expected.kept, expected.deep, *expected.further), start=2):
        for image, indices in enumerate(chosen):
            np.testing.assert_array_equal(pruned.kept(client, image, stage), indices, f"image {image}, stage {stage}")
    further = profile.get("further.layers", ())
    stages = [0, profile["ivr.layer"], profile["ssr.layer"], *further]
    held = [reference.kv[layer][0].shape[1] if layer < reference.n_layer else 0 for layer in stages]
    stats = pruned.stats(client)
    cells = [*stats.kv_cells, *stats.further_cells[: len(further)]]
    np.testing.assert_array_equal(cells, held, "cells per stage")
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=atol)
    for token in NEXT_TOKENS:
        np.testing.assert_allclose(client.decode(token), reference.decode(token), rtol=0, atol=atol)
    return expected


def assert_counts(
    model: Model, profile: Mapping[str, Any], segments: Sequence[Segment], *counts: int
) -> halfv_cpp.halfv_stats:
    """FLOPs are counted as they are foretold for so many tokens before, in and behind a picture."""
    with connect(model[0], profile) as client:
        feed(client, segments)
        stats = pruned.stats(client)
        foretold = pruned.flops(client, profile, *counts)
        assert (stats.flops_dense, stats.flops_spent) == pytest.approx(foretold, rel=1e-12)
        return stats


def assert_prompt_agrees(
    model: Model,
    grids: Sequence[tuple[int, int]],
    profile: Mapping[str, Any],
    *,
    causal: bool = True,
    prepared: bool = False,
    **options: Any,
) -> Result:
    """assert_agree of pictures of these grids and a question."""
    path, reference = model
    segments = make_prepared(reference, grids) if prepared else make_prompt(reference, grids, causal=causal)
    with connect(path, profile, **options) as client:
        return assert_agree(client, reference, segments, profile)


def assert_parts_agree(
    model: Model,
    grids: Sequence[tuple[int, int]],
    profile: Mapping[str, Any],
    parts: tuple[str, ...],
    matters: bool = True,
) -> None:
    """Like the reference, and unlike it without the keys that begin so."""
    expected = assert_prompt_agrees(model, grids, profile, n_batch=64, n_ubatch=64)
    _, reference = model
    segments = make_prompt(reference, grids)
    without = {key: value for key, value in profile.items() if not key.startswith(parts)}
    if matters:
        assert np.abs(expected.logits - reference.run(segments, without).logits).max() > 1e-3


def nmse(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(((actual - expected) ** 2).sum() / (expected**2).sum())

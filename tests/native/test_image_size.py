"""Pictures that libmtmd makes smaller (halfv.image.loss), against Pillow and a choice that tries every size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import halfv_mtmd_h, llama_h, mtmd_h
from PIL import Image

from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client
from tests.support import hf_reference
from tests.support.converted import Pair, convert_tiny
from tests.support.holes import QWEN
from tests.support.mtmd_prompt import MARKER, chunks_of, each, open_mmproj, run_prompt

FACTORS = (0.92, 0.85, 0.78, 0.71, 0.64, 0.57, 0.5, 0.42, 0.33, 0.25)
LOSSES = (0.02, 0.067, 0.09, 0.3)
LEAST = 8  # tokens, of these encoders


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return partial(convert_tiny, root=tmp_path_factory.getbasetemp())


def with_loss(loss: float, min_visual_tokens: int = 1, **more: float) -> Callable[[int], None]:
    def set_profile(model: int) -> None:
        n_layer = llama_h.llama_model_n_layer(model)
        own = Profile(1, 1.0, 0.1, n_layer, 1.0, "dropped", min_visual_tokens, image_loss=loss, **more)
        halfv_cpp.set_model_profile(model, own.to_c())

    return set_profile


@contextlib.contextmanager
def opened(pair: Pair, picture: np.ndarray, on_model: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """The picture as the encoder takes it, and its chunk."""
    with (
        Client(pair.text, n_ctx=2048, on_model=on_model) as client,
        open_mmproj(client, pair.vision) as encoder,
        chunks_of(encoder, picture, MARKER) as chunks,
    ):
        kinds = {mtmd_h.mtmd_input_chunk_get_type(chunk): chunk for chunk in each(chunks)}
        chunk = kinds[mtmd_h.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        yield mtmd_h.mtmd_input_chunk_get_tokens_image(chunk), chunk


def grid(image: int) -> tuple[int, int]:
    return mtmd_h.mtmd_image_tokens_get_nx(image), mtmd_h.mtmd_image_tokens_get_ny(image)


def pages(columns: int, rows: int, side: int) -> np.ndarray:
    """Discs, with a corner of fine lines whose width is a matter of the test."""
    y, x = np.mgrid[: rows * side, : columns * side]
    shape = ((x % (4 * side) - 2 * side) ** 2 + (y % (4 * side) - 2 * side) ** 2 < 2 * side**2)[..., None]
    return np.where(shape, np.uint8([30, 90, 200]), np.uint8([240, 240, 235])).astype(np.uint8)


def loss(picture: np.ndarray, width: int, height: int, side: int) -> float:
    whole = Image.fromarray(picture)
    again = whole.resize((width, height), Image.Resampling.BICUBIC).resize(whole.size, Image.Resampling.BICUBIC)
    lost = (np.abs(np.asarray(whole, int) - np.asarray(again, int)).max(2) > 32).astype(float)
    rows, columns = lost.shape[0] // side, lost.shape[1] // side
    return float(lost.reshape(rows, side, columns, side).mean((1, 3)).max())


def smallest(picture: np.ndarray, side: int, bound: float) -> tuple[int, int]:
    """Columns and rows of the smallest size within the bound."""
    rows, columns = picture.shape[0] // side, picture.shape[1] // side
    best = columns, rows
    for factor in FACTORS:
        size = max(1, int(columns * factor + 0.5)), max(1, int(rows * factor + 0.5))
        fewer = LEAST <= size[0] * size[1] < best[0] * best[1]
        if fewer and loss(picture, size[0] * side, size[1] * side, side) <= bound:
            best = size
    return best


@pytest.mark.parametrize("bound", LOSSES)
@pytest.mark.parametrize("family", QWEN)
def test_the_smallest_size_within_the_bound(family: str, bound: float, pairs: Callable[[str], Pair]) -> None:
    side = 2 * QWEN[family]
    picture = pages(12, 8, side)
    expected = smallest(picture, side, bound)
    with opened(pairs(family), picture, with_loss(bound)) as (image, chunk):
        assert grid(image) == expected
        assert halfv_mtmd_h.halfv_picture_full_tokens(image) == (0 if expected == (12, 8) else 96)
        assert mtmd_h.mtmd_input_chunk_get_n_tokens(chunk) == expected[0] * expected[1]


def test_bounds_of_the_test_tell_sizes_apart() -> None:
    side = 28
    assert len({smallest(pages(12, 8, side), side, bound) for bound in LOSSES}) == len(LOSSES)


@pytest.mark.parametrize("family", QWEN)
def test_the_model_sees_the_smaller_picture(family: str, pairs: Callable[[str], Pair]) -> None:
    """To the bit what it sees of that picture where a client makes it smaller."""
    pair, side = pairs(family), 2 * QWEN[family]
    picture = pages(12, 8, side)
    columns, rows = smallest(picture, side, 0.3)
    by_pillow = np.asarray(Image.fromarray(picture).resize((columns * side, rows * side), Image.Resampling.BICUBIC))
    ours = run_prompt(pair.text, pair.vision, picture, MARKER, on_model=with_loss(0.3))
    theirs = run_prompt(pair.text, pair.vision, by_pillow, MARKER, on_model=with_loss(0.0))
    assert ours.n_pos == theirs.n_pos and ours.pictures[0].shape == theirs.pictures[0].shape
    spread = theirs.pictures[0].std()
    assert np.abs(ours.pictures[0] - theirs.pictures[0]).max() < 0.05 * spread  # a level here and there


@pytest.mark.parametrize("what", ["fine print", "no bound", "too small to bother"])
def test_pictures_that_keep_their_size(what: str, pairs: Callable[[str], Pair]) -> None:
    family = next(iter(QWEN))
    pair, side = pairs(family), 2 * QWEN[family]
    picture = np.full((8 * side, 12 * side, 3), 200, np.uint8)
    if what == "fine print":
        picture[-side:, -side:] = (np.arange(side) % 2 * 255)[None, :, None]
    own = with_loss(0.0 if what == "no bound" else 0.2, 97 if what == "too small to bother" else 1)
    with opened(pair, picture, own) as (image, _):
        assert grid(image) == (12, 8) and not halfv_mtmd_h.halfv_picture_full_tokens(image)
    ours = run_prompt(pair.text, pair.vision, picture, MARKER, on_model=own)
    stock = run_prompt(pair.text, pair.vision, picture, MARKER)
    assert np.array_equal(ours.pictures[0], stock.pictures[0]) and np.array_equal(ours.logits, stock.logits)


def test_ids_tell_sizes_apart(pairs: Callable[[str], Pair]) -> None:
    """So that no cache takes one for the other."""
    family = next(iter(QWEN))
    picture = np.full((8 * 2 * QWEN[family], 12 * 2 * QWEN[family], 3), 200, np.uint8)
    found = set()
    for bound in (0.0, 0.1, 0.2):
        with opened(pairs(family), picture, with_loss(bound)) as (image, _):
            found.add(mtmd_h.mtmd_image_tokens_get_id(image))
    assert len(found) == 3


def test_an_encoder_of_one_size_takes_pictures_as_ever(pairs: Callable[[str], Pair]) -> None:
    pair, picture = pairs("llava"), hf_reference.random_picture(*hf_reference.SIZES["llava"])
    ours = run_prompt(pair.text, pair.vision, np.full_like(picture, 99), f"{MARKER} what", on_model=with_loss(1.0))
    stock = run_prompt(pair.text, pair.vision, np.full_like(picture, 99), f"{MARKER} what")
    assert np.array_equal(ours.pictures[0], stock.pictures[0])


def test_other_savings_go_on_from_the_smaller_picture(pairs: Callable[[str], Pair]) -> None:
    family = next(iter(QWEN))
    side = 2 * QWEN[family]
    picture = pages(12, 8, side)
    picture[:, 6 * side :] = 240
    columns, rows = smallest(picture, side, 0.09)
    with opened(pairs(family), picture, with_loss(0.09, input_keep=0.5)) as (image, chunk):
        assert mtmd_h.mtmd_input_chunk_get_n_tokens(chunk) == columns * rows // 2
        assert halfv_mtmd_h.halfv_picture_rows(image) == columns * rows
    with opened(pairs(family), picture, with_loss(0.09, pixel_tau=0.0)) as (image, _):
        assert grid(image) == (columns, rows)
        assert halfv_mtmd_h.halfv_picture_rows(image) < columns * rows

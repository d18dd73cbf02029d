"""PixelPrune in libmtmd: which patches enter, where they are, and that the model computes the same as without a look at
the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h, mtmd_h, mtmd_helper_h

from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client
from tests.support import drawn, hf_reference, holes
from tests.support.converted import Pair, convert_tiny
from tests.support.drawn import entering
from tests.support.hf_reference import like_ggml
from tests.support.holes import PICTURES, QWEN
from tests.support.mtmd_prompt import MARKER, chunks_of, each, open_mmproj, run_prompt, saved

PROMPT = f"what is in {MARKER}the picture? it's 1314 o'clock\n\nyes."
LIKE_GGML = 2e-3  # standard deviations of the logits, as in test_convert_logits.py
# whole windows and cut ones, of 4 x 4 visual tokens
SIZES = [(8, 6), (10, 5), (3, 9)]
ATTENTIONS = {"stock": halfv_cpp.HALFV_ATTENTION_STOCK, "windows": halfv_cpp.HALFV_ATTENTION_WINDOWS}


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return partial(convert_tiny, root=tmp_path_factory.getbasetemp())


def with_tau(tau: float | None) -> Callable[[int], None]:
    """For Client's on_model: a profile that prunes nothing in the language model."""

    def set_profile(model: int) -> None:
        n_layer = llama_h.llama_model_n_layer(model)
        halfv_cpp.set_model_profile(model, Profile(1, 1.0, 0.1, n_layer, 1.0, "dropped", pixel_tau=tau).to_c())

    return set_profile


@contextlib.contextmanager
def image_chunk(pair: Pair, picture: np.ndarray, tau: float | None) -> Iterator[tuple[int, int]]:
    """The encoder, and the picture as it takes it."""
    with (
        Client(pair.text, n_ctx=256, on_model=with_tau(tau)) as client,
        open_mmproj(client, pair.vision) as encoder,
        chunks_of(encoder, picture, MARKER) as chunks,
    ):
        kinds = {mtmd_h.mtmd_input_chunk_get_type(chunk): chunk for chunk in each(chunks)}
        yield encoder, kinds[mtmd_h.MTMD_INPUT_CHUNK_TYPE_IMAGE]


def places(chunk: int) -> list[tuple[int, int, int]]:
    count = mtmd_h.mtmd_input_chunk_get_n_tokens(chunk)
    found = (mtmd_h.mtmd_decoder_pos * count)()
    mtmd_helper_h.mtmd_helper_image_get_decoder_pos(mtmd_h.mtmd_input_chunk_get_tokens_image(chunk), 100, found)
    return [(place.t, place.y, place.x) for place in found]


def sized(family: str, name: str, columns: int, rows: int) -> tuple[np.ndarray, int]:
    side = 2 * QWEN[family]
    return PICTURES[name](columns * side, rows * side, side), side


@pytest.mark.parametrize("attention", ["stock", "windows"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["page", "screen"])
@pytest.mark.parametrize("family", QWEN)
def test_the_model_sees_what_entered(
    family: str,
    name: str,
    size: tuple[int, int],
    attention: str,
    pairs: Callable[[str], Pair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From pixels to logits against transformers, which is kept from looking at the others."""
    pair = pairs(family)
    monkeypatch.setattr("tests.support.mtmd_prompt.ATTENTION", ATTENTIONS[attention])
    picture, side = sized(family, name, *size)
    entered = entering(picture, side)
    assert len(entered) < 0.8 * size[0] * size[1]
    seen = run_prompt(pair.text, pair.vision, picture, PROMPT, on_model=with_tau(0))
    assert len(seen.pictures[0]) == len(entered)
    assert seen.n_pos == sum(len(piece) for piece in seen.pieces if isinstance(piece, list)) + max(size)
    with like_ggml():
        expected = holes.logits(family, pair.model, seen, picture, entered)
    assert np.abs(seen.logits - expected).max() / expected.std() < LIKE_GGML

    # it matters that they are out, or this would prove little
    whole = run_prompt(pair.text, pair.vision, picture, PROMPT, on_model=with_tau(None))
    assert len(whole.pictures[0]) == size[0] * size[1]
    assert np.abs(seen.logits - whole.logits).max() / expected.std() > 20 * LIKE_GGML
    with like_ggml():
        everything = hf_reference.logits(family, pair, whole, picture)
    assert np.abs(whole.logits - everything).max() / everything.std() < LIKE_GGML


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("family", QWEN)
def test_nothing_changes_where_nothing_repeats(
    family: str, flash_attn: bool, pairs: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pairs(family)
    picture, _ = sized(family, "noise", 8, 6)
    monkeypatch.setattr("tests.support.mtmd_prompt.FLASH_ATTN", flash_attn)
    off, on = (run_prompt(pair.text, pair.vision, picture, PROMPT, on_model=with_tau(tau)) for tau in (None, 0))
    assert np.array_equal(off.pictures[0], on.pictures[0])
    assert np.array_equal(off.logits, on.logits)


@pytest.mark.parametrize("family", QWEN)
def test_places(family: str, pairs: Callable[[str], Pair]) -> None:
    picture, side = sized(family, "screen", 9, 7)
    with image_chunk(pairs(family), picture, 0) as (_, chunk):
        image = mtmd_h.mtmd_input_chunk_get_tokens_image(chunk)
        assert places(chunk) == [(100, 100 + at // 9, 100 + at % 9) for at in entering(picture, side)]
        assert mtmd_h.mtmd_input_chunk_get_n_pos(chunk) == 9
        assert (mtmd_h.mtmd_image_tokens_get_nx(image), mtmd_h.mtmd_image_tokens_get_ny(image)) == (9, 7)


@pytest.mark.parametrize("tau", [0, 0.9, 1, 2, 8, 255])
def test_tau(tau: float, pairs: Callable[[str], Pair]) -> None:
    """In levels of 8 bits, from what stands for a neighbour."""
    for name in ("page", "screen"):
        picture, side = sized("qwen2_5_vl", name, 8, 6)
        picture = drawn.nearly(picture)
        with image_chunk(pairs("qwen2_5_vl"), picture, tau) as (_, chunk):
            assert [(y - 100) * 8 + x - 100 for _, y, x in places(chunk)] == entering(picture, side, tau)


def test_a_blank_page_keeps_its_size(pairs: Callable[[str], Pair]) -> None:
    """One token of four."""
    pair = pairs("qwen2_5_vl")
    picture = np.full((6 * 28, 8 * 28, 3), 255, np.uint8)
    entered = entering(picture, 28)
    assert entered == [0, 11, 13, 15, 25, 27, 29, 31, 41, 43, 45, 47]
    seen = run_prompt(pair.text, pair.vision, picture, PROMPT, on_model=with_tau(0))
    with like_ggml():
        expected = holes.logits("qwen2_5_vl", pair.model, seen, picture, entered)
    assert len(seen.pictures[0]) == 12
    assert np.abs(seen.logits - expected).max() / expected.std() < LIKE_GGML


def test_switched_off_in_the_environment(pairs: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    picture, _ = sized("qwen3_vl", "page", 8, 6)
    monkeypatch.setenv("HALFV", "off")
    with image_chunk(pairs("qwen3_vl"), picture, 0) as (_, chunk):
        assert mtmd_h.mtmd_input_chunk_get_n_tokens(chunk) == 48


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_other_encoders_take_pictures_whole(family: str, pairs: Callable[[str], Pair]) -> None:
    pair = pairs(family)
    width, height = hf_reference.SIZES[family]
    blank = np.full((height, width, 3), 255, np.uint8)
    off, on = (run_prompt(pair.text, pair.vision, blank, PROMPT, on_model=with_tau(tau)) for tau in (None, 0))
    assert np.array_equal(off.logits, on.logits)


@pytest.mark.parametrize("family", QWEN)
def test_pictures_that_lost_patches_are_encoded_one_by_one(family: str, pairs: Callable[[str], Pair]) -> None:
    """Encoders that take a batch want pictures of one size, and know nothing of patches that are missing. None for
    which patches are left out takes one: where that changes, `can_batch_with` has to keep such pictures apart."""
    picture, _ = sized(family, "page", 8, 6)
    with image_chunk(pairs(family), picture, 0) as (encoder, chunk), chunks_of(encoder, picture, MARKER) as others:
        kinds = {mtmd_h.mtmd_input_chunk_get_type(other): other for other in each(others)}
        batch = mtmd_h.mtmd_batch_init(encoder)
        assert mtmd_h.mtmd_batch_add_chunk(batch, chunk) == 0
        assert mtmd_h.mtmd_batch_add_chunk(batch, kinds[mtmd_h.MTMD_INPUT_CHUNK_TYPE_IMAGE]) == 2
        mtmd_h.mtmd_batch_free(batch)


#
# saved chunks
#


@contextlib.contextmanager
def loaded(raw: bytes) -> Iterator[Any]:
    chunk = mtmd_h.mtmd_input_chunk_load(raw, len(raw))
    try:
        yield chunk
    finally:
        mtmd_h.mtmd_input_chunk_free(chunk)


def test_a_saved_chunk_keeps_its_places(pairs: Callable[[str], Pair]) -> None:
    picture, side = sized("qwen2_5_vl", "page", 8, 6)
    entered = entering(picture, side)
    with image_chunk(pairs("qwen2_5_vl"), picture, 0) as (_, chunk):
        raw, before = saved(chunk), places(chunk)
        placeholder = mtmd_h.mtmd_input_chunk_get_placeholder(chunk)
        assert places(placeholder) == before
        mtmd_h.mtmd_input_chunk_free(placeholder)
        with loaded(raw) as again:
            assert places(again) == before and saved(again) == raw

        tail = np.frombuffer(raw[-4 * len(entered) - 5 : -1], "<i4")
        assert tail.tolist() == [len(entered), *entered]
        for index, value in ((1, -1), (1, entered[1]), (len(entered), 48), (0, 10**6), (0, 0)):
            wrong = tail.copy()
            wrong[index] = value
            with loaded(raw[: -4 * len(entered) - 5] + wrong.tobytes() + raw[-1:]) as refused:
                assert not refused
        for length in range(0, len(raw), 7):
            with loaded(raw[:length]) as refused:
                assert not refused


def test_a_whole_picture_is_saved_as_ever(pairs: Callable[[str], Pair]) -> None:
    """So that files go to and fro between this and a llama.cpp without it."""
    picture, _ = sized("qwen2_5_vl", "noise", 8, 6)
    with image_chunk(pairs("qwen2_5_vl"), picture, None) as (_, chunk):
        off = saved(chunk)
    with image_chunk(pairs("qwen2_5_vl"), picture, 0) as (_, chunk):
        assert saved(chunk) == off

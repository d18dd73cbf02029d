"""Pictures of one message in libmtmd: what a frame shows again stays out, by a rule that is stated here once more."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import halfv_mtmd_h, llama_h, mtmd_h

from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client
from tests.support.converted import Pair, convert_tiny
from tests.support.drawn import entering, page
from tests.support.holes import noise
from tests.support.mtmd_prompt import MARKER, each, open_mmproj, saved
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny

FAMILIES = {"qwen2_5_vl": 28, "qwen3_vl": 32}
COLUMNS, ROWS = 10, 9
BYTES = ctypes.POINTER(ctypes.c_uint8)


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return partial(convert_tiny, root=tmp_path_factory.getbasetemp())


@contextlib.contextmanager
def encoder_of(pair: Pair, pixel: float | None = None, frames: float | None = None) -> Iterator[tuple[Client, int]]:
    def set_profile(model: int) -> None:
        n_layer = llama_h.llama_model_n_layer(model)
        own = Profile(1, 1.0, 0.1, n_layer, 1.0, "dropped", pixel_tau=pixel, frames_tau=frames)
        halfv_cpp.set_model_profile(model, own.to_c())

    with (
        Client(pair.text, n_ctx=256, on_model=set_profile) as client,
        open_mmproj(client, pair.vision) as encoder,
    ):
        yield client, encoder


@contextlib.contextmanager
def images(encoder: int, text: str, *frames: np.ndarray | tuple[int, int], video: bool = False) -> Iterator[list[int]]:
    """The chunks of pictures. A size in place of pixels: a placeholder. video: neighbours are merged in pairs."""
    bitmaps = []
    for number, frame in enumerate(frames):
        height, width = frame if isinstance(frame, tuple) else frame.shape[:2]
        data = None if isinstance(frame, tuple) else np.ascontiguousarray(frame).ctypes.data_as(BYTES)
        bitmap = mtmd_h.mtmd_bitmap_init(width, height, data)
        mtmd_h.mtmd_bitmap_set_mergeable(bitmap, video)
        mtmd_h.mtmd_bitmap_set_id(bitmap, f"frame{number}".encode())
        bitmaps.append(bitmap)
    chunks = mtmd_h.mtmd_input_chunks_init()
    raw = text.encode()
    try:
        given = mtmd_h.mtmd_input_text(raw, len(raw), True, True)
        pointers = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
        assert mtmd_h.mtmd_tokenize(encoder, chunks, ctypes.byref(given), pointers, len(bitmaps)) == 0
        kind = mtmd_h.MTMD_INPUT_CHUNK_TYPE_IMAGE
        yield [chunk for chunk in each(chunks) if mtmd_h.mtmd_input_chunk_get_type(chunk) == kind]
    finally:
        mtmd_h.mtmd_input_chunks_free(chunks)
        for bitmap in bitmaps:
            mtmd_h.mtmd_bitmap_free(bitmap)


def entered(chunk: int) -> list[int]:
    picture = mtmd_h.mtmd_input_chunk_get_tokens_image(chunk)
    found = (ctypes.c_int32 * halfv_mtmd_h.halfv_picture_rows(picture))()
    halfv_mtmd_h.halfv_picture_places(picture, found, len(found))
    assert mtmd_h.mtmd_input_chunk_get_n_tokens(chunk) == len(found)
    assert mtmd_h.mtmd_input_chunk_get_n_pos(chunk) == max(COLUMNS, ROWS)  # those of the whole grid
    return list(found)


def end_of_a_message(client: Client) -> str:
    """A text that is cut into one token, which ends a message."""
    vocab = llama_h.llama_model_get_vocab(client.model)
    piece, found = ctypes.create_string_buffer(64), (ctypes.c_int32 * 64)()
    for token in range(client.n_vocab):
        if llama_h.llama_vocab_is_eog(vocab, token):
            length = llama_h.llama_token_to_piece(vocab, token, piece, 64, 0, True)
            text = piece.raw[:length]
            if llama_h.llama_tokenize(vocab, text, len(text), found, 64, False, True) == 1 and found[0] == token:
                return text.decode()
    raise AssertionError("no token ends a message")


def suffix(chunk: int) -> bytes:
    """What is behind a picture's id, as a saved chunk has it."""
    found = re.search(rb"frame\d((?:\+halfv\.frames=[0-9a-f]{16})?)", saved(chunk))
    assert found
    return found[1]


def embeddings(client: Client, encoder: int, chunk: int) -> np.ndarray:
    assert mtmd_h.mtmd_encode_chunk(encoder, chunk) == 0
    shape = mtmd_h.mtmd_input_chunk_get_n_tokens(chunk), llama_h.llama_model_n_embd_inp(client.model)
    return np.ctypeslib.as_array(mtmd_h.mtmd_get_output_embd(encoder), shape).copy()


def what_changed(frames: list[np.ndarray], side: int, tau: float) -> list[list[int]]:
    """Of each frame, with what a place showed when it last changed or was given anyway."""
    everything = list(range(COLUMNS * ROWS))
    out: list[list[int]] = []
    seen = np.zeros_like(frames[0])
    for number, frame in enumerate(frames):
        far = np.abs(frame.astype(int) - seen).reshape(ROWS, side, COLUMNS, -1).max((1, 3)) > tau
        given = everything if number == 0 else np.flatnonzero(far).tolist()
        for y, x in itertools.product(range(0, ROWS, 8), range(0, COLUMNS, 8)):
            cell = [b * COLUMNS + a for b in range(y, min(y + 8, ROWS)) for a in range(x, min(x + 8, COLUMNS))]
            if not set(cell) & set(given):
                given.append(cell[-1])
        given = sorted(given) if 10 * (len(everything) - len(given)) >= len(everything) else everything
        for place in given:
            row, column = divmod(place, COLUMNS)
            at = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            seen[at] = frame[at]
        out.append(given)
    return out


def scene(side: int, count: int, drift: int = 0) -> list[np.ndarray]:
    """A room that is full of detail, in which a block moves; drift: and it gets lighter by so many levels a frame."""
    room = noise(COLUMNS * side, ROWS * side, side) // 2 + 40
    frames = []
    for number in range(count):
        frame = np.clip(room.astype(int) + drift * number, 0, 255).astype(np.uint8)
        frame[3 * side : 5 * side, number * side : number * side + 50] = (200, 30, 30)
        frames.append(frame)
    return frames


@pytest.mark.parametrize("family", FAMILIES)
def test_what_changed_enters(family: str, pairs: Callable[[str], Pair]) -> None:
    side = FAMILIES[family]
    frames = scene(side, 4)
    with (
        encoder_of(pairs(family), frames=0) as (client, encoder),
        images(encoder, "see " + MARKER * 4, *frames) as chunks,
    ):
        found = [entered(chunk) for chunk in chunks]
        assert found == what_changed(frames, side, 0)
        assert [len(places) < 20 for places in found] == [False, True, True, True]
        assert all(np.isfinite(embeddings(client, encoder, chunk)).all() for chunk in chunks)


@pytest.mark.parametrize("tau", [1, 3, 8.5])
def test_nothing_drifts(tau: float, pairs: Callable[[str], Pair]) -> None:
    """Each frame is within the bound of the one before, and yet what is left out is within it of what was given."""
    frames = scene(28, 9, drift=1)
    with encoder_of(pairs("qwen2_5_vl"), frames=tau) as (_, encoder), images(encoder, MARKER * 9, *frames) as chunks:
        found = [entered(chunk) for chunk in chunks]
    assert found == what_changed(frames, 28, tau)
    assert sum(map(len, found)) > 0.8 * COLUMNS * ROWS * (1 + 8 // (int(tau) + 1))  # all came again that often


def test_what_one_picture_repeats_stays_out_as_well(pairs: Callable[[str], Pair]) -> None:
    paper = page(COLUMNS * 28, ROWS * 28, 28)
    with (
        encoder_of(pairs("qwen2_5_vl"), pixel=0, frames=0) as (_, encoder),
        images(encoder, MARKER * 3, paper, paper, 255 - paper) as chunks,
    ):
        first, again, other = map(entered, chunks)
    assert first == entering(paper, 28) == other  # a new scene is a picture of its own
    assert again == what_changed([paper, paper], 28, 0)[1] and len(again) == 4


def test_pictures_that_are_not_compared(tmp_path: Path) -> None:
    """Of another shape, of another message, behind one whose pixels are not known, with the key left out."""
    picture = noise(COLUMNS * 28, ROWS * 28, 28)
    turned = noise(ROWS * 28, COLUMNS * 28, 28)
    pair = Pair(None, tmp_path, tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf")
    make_tiny(pair.text, "qwen2vl", seed=3)
    make_tiny_mmproj(pair.vision, "qwen2vl", n_embd=64)
    with encoder_of(pair, frames=0) as (client, encoder):
        end = end_of_a_message(client)
        for text, shown, expected in (
            (MARKER * 2, (picture, picture), [90, 4]),
            (MARKER * 3, (picture, turned, picture), [90, 90, 90]),
            (f"{MARKER} and then {MARKER}", (picture, picture), [90, 4]),
            (MARKER + end + MARKER, (picture, picture), [90, 90]),
            (MARKER * 3, (picture, picture.shape[:2], picture), [90, 90, 90]),
        ):
            with images(encoder, text, *shown) as chunks:
                assert [len(entered(chunk)) for chunk in chunks] == expected, text
    with encoder_of(pair) as (_, encoder), images(encoder, MARKER * 2, picture, picture) as chunks:
        assert [len(entered(chunk)) for chunk in chunks] == [90, 90]


def test_one_by_one_as_in_one_text(pairs: Callable[[str], Pair]) -> None:
    """For programs that hand pictures over one at a time; the ids of what is the same are the same."""
    frames = scene(28, 3)
    with encoder_of(pairs("qwen2_5_vl"), frames=0) as (_, encoder):
        with images(encoder, MARKER * 3, *frames) as chunks:
            expected = [(entered(chunk), suffix(chunk)) for chunk in chunks]
        scene_ = halfv_mtmd_h.halfv_frames_init()
        halfv_mtmd_h.halfv_follow_frames(scene_)
        found = []
        for frame in frames:
            with images(encoder, MARKER, frame) as (chunk,):
                found.append((entered(chunk), suffix(chunk)))
        halfv_mtmd_h.halfv_frames_free(scene_)  # which ends following it
        with images(encoder, MARKER, frames[2]) as (chunk,):
            assert len(entered(chunk)) == COLUMNS * ROWS
    assert found == expected and found[0][1] == b""
    assert found[1][1] != found[2][1] and all(id_ for _, id_ in found[1:])


def test_ids_tell_what_came_before(pairs: Callable[[str], Pair]) -> None:
    """Also where as many patches of the same picture are left."""
    first, second = scene(28, 2)
    other = first.copy()
    other[:56, :56] += 1
    with encoder_of(pairs("qwen2_5_vl"), frames=0) as (_, encoder):
        seen = []
        for before in (first, other, first):
            with images(encoder, MARKER * 2, before, second) as chunks:
                seen.append((entered(chunks[1]), suffix(chunks[1])))
    assert seen[0] == seen[2] and seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]


def test_the_first_picture_is_what_it_was(pairs: Callable[[str], Pair]) -> None:
    picture = noise(COLUMNS * 28, ROWS * 28, 28)
    found = []
    for frames in (None, 0):
        with (
            encoder_of(pairs("qwen2_5_vl"), frames=frames) as (client, encoder),
            images(encoder, MARKER, picture) as (chunk,),
        ):
            found.append((saved(chunk), embeddings(client, encoder, chunk).tobytes()))
    assert found[0] == found[1]


#
# frames of a video, which are merged in pairs
#


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs(family: str, pairs: Callable[[str], Pair]) -> None:
    """A pair is compared with the pair before, and a frame that is left over counts as a pair of itself."""
    side = FAMILIES[family]
    one, two, three = scene(side, 3)
    shown = [one, one, one, one, two, three, three]
    with encoder_of(pairs(family), frames=0) as (client, encoder):
        with images(encoder, MARKER * 7, *shown, video=True) as chunks:
            found = [entered(chunk) for chunk in chunks]
            values = [embeddings(client, encoder, chunk) for chunk in chunks]
        with images(encoder, MARKER * 2, one, one) as chunks:
            alone = [embeddings(client, encoder, chunk) for chunk in chunks]
    double = [np.concatenate(both, axis=2) for both in ((one, one), (one, one), (two, three), (three, three))]
    assert found == what_changed(double, side, 0)
    assert [len(places) for places in found[:2]] == [COLUMNS * ROWS, 4]
    for merged, still in zip(values, alone, strict=False):  # a picture is two frames that are equal
        np.testing.assert_allclose(merged, still, atol=1e-4)
    assert all(np.isfinite(value).all() for value in values)


def test_a_pair_repeats_itself(pairs: Callable[[str], Pair]) -> None:
    """Where one frame's patches repeat and the other's do not, they enter."""
    paper, dots = page(COLUMNS * 28, ROWS * 28, 28), noise(COLUMNS * 28, ROWS * 28, 28)
    with encoder_of(pairs("qwen2_5_vl"), pixel=0) as (client, encoder):
        for shown, expected in (((paper, paper), entering(paper, 28)), ((paper, dots), list(range(COLUMNS * ROWS)))):
            with images(encoder, MARKER * 2, *shown, video=True) as (chunk,):
                assert entered(chunk) == expected
                assert np.isfinite(embeddings(client, encoder, chunk)).all()
                raw = saved(chunk)
                again = mtmd_h.mtmd_input_chunk_load(raw, len(raw))
                assert saved(again) == raw and entered(again) == expected
                mtmd_h.mtmd_input_chunk_free(again)

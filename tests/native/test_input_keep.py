"""The choice before the language model in libmtmd: which rows go on, where they stand, and that the model computes the
same as without a look at the others."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
import pytest
import torch
from halfv_cpp import halfv_mtmd_h, llama_h, mtmd_h, mtmd_helper_h

from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client, DecodeError
from tests.support import drawn, hf_reference, holes
from tests.support.converted import Pair, convert_tiny
from tests.support.hf_reference import QWEN, like_ggml
from tests.support.mtmd_prompt import MARKER, PromptRun, chunks_of, each, open_mmproj, run_prompt, saved
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.tiny_pixtral import make_pixtral

PROMPT = f"what is in {MARKER}the picture? it's 1314 o'clock\n\nyes."
LIKE_GGML = 2e-3  # standard deviations of the logits, as in test_convert_logits.py
KEEP = 0.4


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return partial(convert_tiny, root=tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A language model with one-dimensional positions, and an encoder that tiles: 100 rows each."""
    folder = tmp_path_factory.mktemp("llava")
    text = make_tiny(folder / "text.gguf", "llama", n_embd=64, n_layer=4)
    return text, make_tiny_mmproj(folder / "mmproj.gguf", "llava-next", n_embd=64)


def with_keep(keep: float | None, **more: Any) -> Callable[[int], None]:
    """For Client's on_model: a profile that prunes nothing in the language model."""

    def set_profile(model: int) -> None:
        if keep is not None:
            n_layer = llama_h.llama_model_n_layer(model)
            profile = Profile(1, 1.0, 0.1, n_layer, 1.0, "dropped", **{"min_visual_tokens": 0, **more}, input_keep=keep)
            halfv_cpp.set_model_profile(model, profile.to_c())

    return set_profile


@contextlib.contextmanager
def opened(
    text: Path, mmproj: Path, picture: np.ndarray, keep: float | None, prompt: str = MARKER, **more: Any
) -> Iterator[tuple[Client, int, list[int]]]:
    """A context, the encoder, and the chunks of a prompt."""
    with (
        Client(text, n_ctx=1024, on_model=with_keep(keep, **more)) as client,
        open_mmproj(client, mmproj) as encoder,
        chunks_of(encoder, picture, prompt) as chunks,
    ):
        yield client, encoder, each(chunks)


def is_image(chunk: int) -> bool:
    return mtmd_h.mtmd_input_chunk_get_type(chunk) == mtmd_h.MTMD_INPUT_CHUNK_TYPE_IMAGE


def image_of(chunk: int) -> int:
    return mtmd_h.mtmd_input_chunk_get_tokens_image(chunk)


def kept_of(chunk: int) -> list[int] | None:
    found = (ctypes.c_int32 * mtmd_h.mtmd_input_chunk_get_n_tokens(chunk))()
    count = halfv_mtmd_h.halfv_picture_kept(image_of(chunk), found, len(found))
    return None if count == halfv_mtmd_h.HALFV_ROWS_UNKNOWN else list(found)


def encoded(encoder: int, chunk: int, width: int) -> np.ndarray:
    assert mtmd_h.mtmd_encode_chunk(encoder, chunk) == 0
    shape = (mtmd_h.mtmd_input_chunk_get_n_tokens(chunk), width)
    return np.ctypeslib.as_array(mtmd_h.mtmd_get_output_embd(encoder), shape).copy()


def positions(chunk: int) -> list[tuple[int, int, int]]:
    found = (mtmd_h.mtmd_decoder_pos * mtmd_h.mtmd_input_chunk_get_n_tokens(chunk))()
    mtmd_helper_h.mtmd_helper_image_get_decoder_pos(image_of(chunk), 100, found)
    return [(place.t, place.y, place.x) for place in found]


def picture_for(family: str) -> np.ndarray:
    return hf_reference.random_picture(*hf_reference.SIZES[family])


def rows_and_kept(whole: PromptRun, n_embd: int, keep: float = KEEP) -> tuple[np.ndarray, list[int]]:
    rows = whole.pictures[0]
    return rows, drawn.coverage(rows[:, :n_embd], keep)


@pytest.mark.parametrize("family", [*QWEN, "llava"])
def test_the_model_sees_what_is_kept(family: str, pairs: Callable[[str], Pair]) -> None:
    """From pixels to logits against transformers, whose language model is kept from looking at the others."""
    pair, picture = pairs(family), picture_for(family)
    whole = run_prompt(pair.text, pair.vision, picture, PROMPT)
    seen = run_prompt(pair.text, pair.vision, picture, PROMPT, on_model=with_keep(KEEP))
    rows, kept = rows_and_kept(whole, pair.model.config.get_text_config().hidden_size)
    assert np.array_equal(seen.pictures[0], rows[kept])  # DeepStack's columns go along
    assert seen.n_pos == whole.n_pos  # text stands where it would behind the whole picture

    with like_ggml():
        if family == "llava":
            expected = holes.llava_logits(pair.model, seen, picture, kept, len(rows))
        else:
            expected = holes.logits(family, pair.model, seen, picture, kept, encoder_sees_all=True)
    assert np.abs(seen.logits - expected).max() / expected.std() < LIKE_GGML
    assert np.abs(seen.logits - whole.logits).max() / expected.std() > 20 * LIKE_GGML


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_nothing_changes_where_all_are_kept(family: str, pairs: Callable[[str], Pair]) -> None:
    pair, picture = pairs(family), picture_for(family)
    plain = run_prompt(pair.text, pair.vision, picture, PROMPT)
    n_rows = len(plain.pictures[0])
    for profile in (with_keep(1.0), with_keep(0.5, min_visual_tokens=n_rows + 1)):
        same = run_prompt(pair.text, pair.vision, picture, PROMPT, on_model=profile)
        assert np.array_equal(same.pictures[0], plain.pictures[0])
        assert np.array_equal(same.logits, plain.logits)
    with opened(pair.text, pair.vision, picture, 1.0) as (_, _, chunks):
        assert kept_of(next(filter(is_image, chunks))) == list(range(n_rows))


def test_switched_off_in_the_environment(pairs: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pairs("llava")
    monkeypatch.setenv("HALFV", "off")
    with opened(pair.text, pair.vision, picture_for("llava"), KEEP) as (_, _, chunks):
        image = next(filter(is_image, chunks))
        assert mtmd_h.mtmd_input_chunk_get_n_tokens(image) == halfv_mtmd_h.halfv_picture_rows(image_of(image)) == 36


def test_places_on_the_grid(pairs: Callable[[str], Pair]) -> None:
    pair, picture = pairs("qwen2_5_vl"), picture_for("qwen2_5_vl")
    with opened(pair.text, pair.vision, picture, KEEP) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        assert mtmd_h.mtmd_input_chunk_get_n_tokens(image) == 19  # int(0.4 x 48), before the encoder runs
        assert kept_of(image) is None
        encoded(encoder, image, client.n_embd_inp)
        kept = kept_of(image)
        assert kept is not None and len(kept) == 19 and kept[-1] == 47
        assert positions(image) == [(100, 100 + i // 8, 100 + i % 8) for i in kept]
        assert mtmd_h.mtmd_input_chunk_get_n_pos(image) == 8
        assert halfv_mtmd_h.halfv_picture_rows(image_of(image)) == 48


def test_places_in_a_row(pairs: Callable[[str], Pair]) -> None:
    pair = pairs("llava")
    with opened(pair.text, pair.vision, picture_for("llava"), KEEP) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        encoded(encoder, image, client.n_embd_inp)
        kept = kept_of(image)
        assert kept is not None and len(kept) == 14 and kept != list(range(14))
        assert [place[0] for place in positions(image)] == [100 + i for i in kept]
        assert mtmd_h.mtmd_input_chunk_get_n_pos(image) == 36


def test_after_pixel_pruning(pairs: Callable[[str], Pair]) -> None:
    """The choice is among what the encoder gave."""
    pair, side = pairs("qwen2_5_vl"), 28
    picture = holes.PICTURES["page"](8 * side, 6 * side, side)
    entered = drawn.entering(picture, side)
    with opened(pair.text, pair.vision, picture, 1.0, pixel_tau=0) as (client, encoder, chunks):
        rows = encoded(encoder, next(filter(is_image, chunks)), client.n_embd_inp)
    with opened(pair.text, pair.vision, picture, KEEP, pixel_tau=0) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        given = encoded(encoder, image, client.n_embd_inp)
        kept = drawn.coverage(rows, KEEP)
        assert len(rows) == len(entered) and kept_of(image) == kept and np.array_equal(given, rows[kept])
        assert positions(image) == [(100, 100 + entered[i] // 8, 100 + entered[i] % 8) for i in kept]
        places = (ctypes.c_int32 * len(rows))()
        assert halfv_mtmd_h.halfv_picture_places(image_of(image), places, len(rows)) == len(rows)
        assert list(places) == entered


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_batches_cut_anywhere_and_two_pictures(family: str, pairs: Callable[[str], Pair]) -> None:
    """With gaps between batches, within them, and before the text that follows."""
    pair, found = pairs(family), []
    pictures = [picture_for(family), np.ascontiguousarray(picture_for(family)[::-1])]
    for n_batch in (512, 13, 5):
        with (
            Client(pair.text, n_ctx=1024, on_model=with_keep(KEEP)) as client,
            open_mmproj(client, pair.vision) as encoder,
        ):
            n_past = ctypes.c_int32(0)
            for picture, prompt in zip(pictures, (PROMPT, PROMPT), strict=True):
                with chunks_of(encoder, picture, prompt) as chunks:
                    args = (encoder, client.ctx, chunks, n_past.value, 0, n_batch, True, ctypes.byref(n_past))
                    assert mtmd_helper_h.mtmd_helper_eval_chunks(*args) == 0
            found.append(client.logits())
    for other in found[1:]:
        assert np.abs(other - found[0]).max() / found[0].std() < 1e-4


def test_another_context_is_told_of_the_chunk(llava: tuple[Path, Path]) -> None:
    """A draft model's, which is given the same rows: it takes their gaps once it knows."""
    picture = hf_reference.random_picture(280, 280)
    with opened(*llava, picture, KEEP) as (client, encoder, chunks), Client(llava[0], n_ctx=256) as draft:
        chunk = next(filter(is_image, chunks))
        rows = encoded(encoder, chunk, client.n_embd_inp)
        places = np.array([t for t, _, _ in positions(chunk)])
        with pytest.raises(DecodeError, match="continuous"):
            draft.image(rows, places)
        halfv_mtmd_h.halfv_begin_chunk(draft.ctx, chunk)
        draft.image(rows, places)


def test_tiles_together_are_as_each_alone(llava: tuple[Path, Path]) -> None:
    picture = hf_reference.random_picture(280, 280)
    with opened(*llava, picture, KEEP) as (client, encoder, chunks):
        images = list(filter(is_image, chunks))
        assert len(images) == 5
        alone = [encoded(encoder, image, client.n_embd_inp) for image in images]
        assert [rows.shape for rows in alone] == [(40, 64)] * 5
        batch = mtmd_h.mtmd_batch_init(encoder)
        added = [image for image in images if mtmd_h.mtmd_batch_add_chunk(batch, image) == 0]
        assert mtmd_h.mtmd_batch_encode(batch) == 0
        for image, rows in zip(added, alone, strict=False):
            together = np.ctypeslib.as_array(mtmd_h.mtmd_batch_get_output_embd(batch, image), rows.shape)
            assert np.abs(together - rows).max() < 1e-5
        mtmd_h.mtmd_batch_free(batch)


def test_rows_that_end_a_line_stay(llava: tuple[Path, Path], tmp_path: Path) -> None:
    line_end = make_pixtral(tmp_path / "pixtral.gguf", 64)
    picture = hf_reference.random_picture(10 * 14, 7 * 14)
    with opened(llava[0], tmp_path / "pixtral.gguf", picture, 1.0) as (client, encoder, chunks):
        whole = encoded(encoder, next(filter(is_image, chunks)), client.n_embd_inp)
    ends = [11 * line - 1 for line in range(1, 7)]
    assert len(whole) == 76 and all(np.array_equal(whole[at], line_end) for at in ends)
    with opened(llava[0], tmp_path / "pixtral.gguf", picture, KEEP) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        rows, kept = encoded(encoder, image, client.n_embd_inp), kept_of(image)
        assert kept is not None and set(ends) < set(kept) and len(kept) == len(ends) + int(KEEP * 70)
        assert np.array_equal(rows, whole[kept])
        patches = [i for i in range(76) if i not in ends]
        assert [i for i in kept if i not in ends] == [patches[i] for i in drawn.coverage(whole[patches], KEEP)]


#
# rows that are averaged
#


def merged(rows: np.ndarray, width: int, n_left: int) -> tuple[np.ndarray, list[int]]:
    """AIM's bipartite merging, to the last row: what is left, and which rows these were."""
    x, places = torch.from_numpy(rows).double(), torch.arange(len(rows))
    while len(x) > n_left:
        is_target = torch.arange(len(x)).flip(0) % 2 == 0
        sources, targets = (~is_target).nonzero().flatten(), is_target.nonzero().flatten()
        unit = torch.nn.functional.normalize(x[:, :width], dim=1)
        likeness, best = (unit[sources] @ unit[targets].T).max(1)
        joins = likeness.argsort(descending=True, stable=True)[: len(x) - n_left]
        to = targets[best[joins]][:, None].expand(-1, x.shape[1])
        x = x.scatter_reduce(0, to, x[sources[joins]], "mean", include_self=True)
        stays = torch.ones(len(x), dtype=torch.bool)
        stays[sources[joins]] = False
        x, places = x[stays], places[stays]
    return x.numpy(), places.tolist()


@pytest.mark.parametrize(("merge", "keep"), [(0.25, 1.0), (0.6, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("family", [*QWEN, "llava"])
def test_rows_that_are_alike_are_averaged(family: str, merge: float, keep: float, pairs: Callable[[str], Pair]) -> None:
    """Each stands where the row stood that the others joined; columns of DeepStack are averaged with it."""
    pair, picture = pairs(family), picture_for(family)
    width = pair.model.config.get_text_config().hidden_size
    with opened(pair.text, pair.vision, picture, None) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        whole, stood = encoded(encoder, image, client.n_embd_inp), positions(image)
        n_pos = mtmd_h.mtmd_input_chunk_get_n_pos(image)
    expected, places = merged(whole, width, int(merge * len(whole)))
    if keep < 1:
        chosen = drawn.coverage(expected[:, :width], keep)
        expected, places = expected[chosen], [places[i] for i in chosen]
    with opened(pair.text, pair.vision, picture, keep, input_merge=merge) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        rows = encoded(encoder, image, client.n_embd_inp)
        assert kept_of(image) == places and places[-1] == len(whole) - 1
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(whole).max())
        assert positions(image) == [stood[place] for place in places]
        assert mtmd_h.mtmd_input_chunk_get_n_pos(image) == n_pos
        assert decode(client, encoder, image, rows) == 0


#
# ids, and chunks that are copied and saved
#


@contextlib.contextmanager
def owned(chunk: int | None) -> Iterator[int | None]:
    try:
        yield chunk
    finally:
        mtmd_h.mtmd_input_chunk_free(chunk or 0)


def decode(client: Client, encoder: int, chunk: int, rows: np.ndarray) -> int:
    data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    after, none = ctypes.c_int32(), mtmd_helper_h.mtmd_helper_post_decode_callback(0)
    args = (encoder, client.ctx, chunk, data, 0, 0, 512, ctypes.byref(after), none, None)
    return mtmd_helper_h.mtmd_helper_decode_image_chunk(*args)


def test_what_is_not_encoded_has_no_places(llava: tuple[Path, Path]) -> None:
    """A copy knows them as soon as the other is encoded; what was saved before does not, and is refused."""
    with opened(*llava, hf_reference.random_picture(140, 140), KEEP) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        with (
            owned(mtmd_h.mtmd_input_chunk_get_placeholder(image)) as early,
            owned(mtmd_h.mtmd_input_chunk_copy(image)) as copy,
        ):
            rows = encoded(encoder, image, client.n_embd_inp)
            assert kept_of(early) is None and kept_of(copy) == kept_of(image) is not None
            assert mtmd_h.mtmd_input_chunk_get_n_tokens(early) == 40
            assert decode(client, encoder, early, rows) == -1
            assert decode(client, encoder, copy, rows) == 0

            kept = kept_of(image)
            assert kept is not None
            for wrong in (kept[:-1], [*kept[:-1], 100], kept[::-1], [-1, *kept[1:]], [*kept, 99]):
                given = (ctypes.c_int32 * len(wrong))(*wrong)
                code = halfv_mtmd_h.halfv_picture_set_kept(image_of(early), given, len(wrong))
                assert code == halfv_cpp.HALFV_ERR_ARGUMENT and kept_of(early) is None
            given = (ctypes.c_int32 * 40)(*kept)
            assert halfv_mtmd_h.halfv_picture_set_kept(image_of(early), given, 40) == halfv_cpp.HALFV_OK
            llama_h.llama_memory_clear(client.memory, True)
            assert kept_of(early) == kept and decode(client, encoder, early, rows) == 0


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_a_saved_chunk_keeps_its_rows(family: str, pairs: Callable[[str], Pair]) -> None:
    pair = pairs(family)
    with opened(pair.text, pair.vision, picture_for(family), KEEP) as (client, encoder, chunks):
        image = next(filter(is_image, chunks))
        n_rows, n_pos = halfv_mtmd_h.halfv_picture_rows(image_of(image)), mtmd_h.mtmd_input_chunk_get_n_pos(image)
        encoded(encoder, image, client.n_embd_inp)
        raw, kept = saved(image), kept_of(image)
        assert kept is not None
        n = len(kept)
        with owned(mtmd_h.mtmd_input_chunk_load(raw, len(raw))) as again:
            assert (kept_of(again), positions(again)) == (kept, positions(image))
            assert mtmd_h.mtmd_input_chunk_get_n_pos(again) == n_pos
            assert halfv_mtmd_h.halfv_picture_rows(image_of(again)) == n_rows
            assert saved(again) == raw

        tail = np.frombuffer(raw[-4 * n - 9 : -1], "<i4")
        assert tail.tolist() == [n, n, *kept]
        for index, value in (
            (2, -1),
            (3, kept[0]),
            (n + 1, n_rows),
            (0, n + 1),
            (0, 0),
            (0, -3),
            (1, n - 1),
            (1, 10**6),
        ):
            wrong = tail.copy()
            wrong[index] = value
            broken = raw[: -4 * n - 9] + wrong.tobytes() + raw[-1:]
            with owned(mtmd_h.mtmd_input_chunk_load(broken, len(broken))) as refused:
                assert not refused
        for length in range(0, len(raw), 7):
            with owned(mtmd_h.mtmd_input_chunk_load(raw[:length], length)) as refused:
                assert not refused


def test_ids_tell_settings_apart(llava: tuple[Path, Path]) -> None:
    """Prompt caches compare ids and counts of tokens: two settings of one picture must not look the same."""
    picture = hf_reference.random_picture(140, 140)
    pixels = np.ascontiguousarray(picture).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    found = []
    for keep, id_ in ((None, b"cat"), (1.0, b"cat"), (0.401, b"cat"), (0.402, b"cat"), (0.402, None)):
        with (
            Client(llava[0], n_ctx=256, on_model=with_keep(keep)) as client,
            open_mmproj(client, llava[1]) as encoder,
        ):
            bitmap, chunks = mtmd_h.mtmd_bitmap_init(140, 140, pixels), mtmd_h.mtmd_input_chunks_init()
            mtmd_h.mtmd_bitmap_set_id(bitmap, id_)
            text = mtmd_h.mtmd_input_text(MARKER.encode(), len(MARKER), True, True)
            assert mtmd_h.mtmd_tokenize(encoder, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1) == 0
            image = next(filter(is_image, each(chunks)))
            found.append(
                (mtmd_h.mtmd_image_tokens_get_id(image_of(image)), mtmd_h.mtmd_input_chunk_get_n_tokens(image))
            )
            mtmd_h.mtmd_input_chunks_free(chunks)
            mtmd_h.mtmd_bitmap_free(bitmap)
    assert found[0] == found[1] == (b"cat", 100)
    assert found[2] == (b"cat+halfv.input.keep=0.400999993", 40)
    assert found[3][0] != found[2][0] and found[3][1] == 40
    assert found[4] == (b"", 40)

"""Layers of a vision encoder that see only some groups of patches, against transformers' encoders under that rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.profile.profile import Profile
from tests.support import hf_reference, reduced
from tests.support.converted import Pair, convert_tiny
from tests.support.drawn import entering
from tests.support.hf_reference import like_ggml
from tests.support.holes import PICTURES, QWEN
from tests.support.mtmd_prompt import MARKER, run_prompt

LIKE_GGML = 5e-3  # standard deviations of the rows
ATTENTIONS = {"stock": halfv_cpp.HALFV_ATTENTION_STOCK, "windows": halfv_cpp.HALFV_ATTENTION_WINDOWS}


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return partial(convert_tiny, root=tmp_path_factory.getbasetemp())


def rows(pair: Pair, picture: np.ndarray, keep: float, layer: int = 1, **more: Any) -> np.ndarray:
    """Of a picture, as the language model is given them."""

    def set_profile(model: int) -> None:
        stages = (1, 1.0, 0.1, llama_h.llama_model_n_layer(model), 1.0, "dropped")
        seen = {"min_visual_tokens": 0, "encoder_layer": layer, "encoder_keep": keep} | more
        halfv_cpp.set_model_profile(model, Profile(*stages, **seen).to_c())

    return run_prompt(pair.text, pair.vision, picture, f"{MARKER} a", on_model=set_profile).pictures[0]


def drawn(family: str, name: str = "noise", columns: int = 8, lines: int = 6) -> np.ndarray:
    side = 2 * QWEN[family]
    return PICTURES[name](columns * side, lines * side, side)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("size", [(8, 6), (10, 5)])  # whole windows, and cut ones
@pytest.mark.parametrize("family", QWEN)
def test_rows(
    family: str, size: tuple[int, int], attention: str, pairs: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.mtmd_prompt.ATTENTION", ATTENTIONS[attention])
    pair, picture = pairs(family), drawn(family, "noise", *size)
    whole, found = rows(pair, picture, 1.0), rows(pair, picture, 0.4)
    with like_ggml():
        expected = reduced.rows(family, pair.model, picture, 1, 0.4)
    assert distance(found, expected) < LIKE_GGML
    assert distance(found, whole) > 20 * LIKE_GGML  # or this would prove little


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_rows_of_encoders_without_groups(family: str, pairs: Callable[[str], Pair]) -> None:
    pair, picture = pairs(family), hf_reference.random_picture(*hf_reference.SIZES[family])
    whole, found = rows(pair, picture, 1.0), rows(pair, picture, 0.5)
    with like_ggml(family):
        expected = reduced.rows_of_patches(pair, family, picture, 1, 0.5)
    assert distance(found, expected) < LIKE_GGML
    assert distance(found, whole) > 20 * LIKE_GGML


@pytest.mark.parametrize("family", [*QWEN, "llava"])
def test_whole_is_as_before(family: str, pairs: Callable[[str], Pair]) -> None:
    """To the bit: with keep = 1, for small pictures, and from a layer on that there is not."""
    pair = pairs(family)
    picture = drawn(family) if family in QWEN else hf_reference.random_picture(*hf_reference.SIZES[family])
    before = run_prompt(pair.text, pair.vision, picture, f"{MARKER} a").pictures[0]
    assert np.array_equal(rows(pair, picture, 1.0), before)
    assert np.array_equal(rows(pair, picture, 0.5, min_visual_tokens=1000), before)
    assert np.array_equal(rows(pair, picture, 0.5, layer=99), before)


TILED = ("llava_next_mistral", "smolvlm", "internvl")
FURTHER = ("mistral3", "paddleocr_vl", "glm4v", "gemma4", "lfm2_vl")


def all_rows(pair: Pair, picture: np.ndarray, keep: float, **more: Any) -> list[np.ndarray]:
    def set_profile(model: int) -> None:
        stages = (1, 1.0, 0.1, llama_h.llama_model_n_layer(model), 1.0, "dropped")
        seen = {"min_visual_tokens": 0, "encoder_layer": 1, "encoder_keep": keep} | more
        halfv_cpp.set_model_profile(model, Profile(*stages, **seen).to_c())

    return run_prompt(pair.text, pair.vision, picture, f"{MARKER} a", on_model=set_profile).pictures


@pytest.mark.parametrize("family", TILED)
def test_tiles_one_by_one(family: str, pairs: Callable[[str], Pair]) -> None:
    """What a tile loses does not depend on the others; whole ones are as before, to the bit."""
    pair = pairs(family)
    width, height = 2 * hf_reference.SIZES[family][0], hf_reference.SIZES[family][1]
    left, right = (hf_reference.random_picture(width, height, seed=seed) for seed in (1, 2))
    before = run_prompt(pair.text, pair.vision, left, f"{MARKER} a").pictures
    assert len(before) > 1
    for found, expected in zip(all_rows(pair, left, 1.0), before, strict=True):
        assert np.array_equal(found, expected)
    reduced_rows = all_rows(pair, left, 0.5)
    for found, expected in zip(reduced_rows, before, strict=True):
        assert found.shape == expected.shape and np.isfinite(found).all()
        assert distance(found, expected) > LIKE_GGML
    if family == "smolvlm":
        return  # it enlarges pictures, so that tiles share pixels
    other = np.concatenate([left[:, : width // 2], right[:, width // 2 :]], axis=1)  # other tiles to the right
    same = [np.array_equal(a, b) for a, b in zip(all_rows(pair, other, 0.5), reduced_rows, strict=True)]
    assert any(same) and not all(same)


@pytest.mark.parametrize("family", FURTHER)
def test_further_encoders(family: str, pairs: Callable[[str], Pair]) -> None:
    """Positions are those of the whole picture: with one group left out the others are nearly what they were."""
    larger = 3 if family == "glm4v" else 1  # or one group is a twelfth of it
    width, height = hf_reference.SIZES[family]
    pair, picture = pairs(family), hf_reference.random_picture(larger * width, larger * height)
    whole = run_prompt(pair.text, pair.vision, picture, f"{MARKER} a").pictures[0]
    assert np.array_equal(rows(pair, picture, 1.0), whole)
    fewer, half = rows(pair, picture, 0.999), rows(pair, picture, 0.5)
    assert fewer.shape == half.shape == whole.shape
    off = [np.abs(found - whole).max(axis=1) / whole.std() for found in (fewer, half)]
    assert np.median(off[0]) < 0.1 * np.median(off[1]), (np.median(off[0]), np.median(off[1]))


def test_after_deepstack_it_is_whole(pairs: Callable[[str], Pair]) -> None:
    """What DeepStack reads of a layer that saw everything would be lost between the two runs."""
    pair, picture = pairs("qwen3_vl"), drawn("qwen3_vl")
    assert np.array_equal(rows(pair, picture, 0.5, layer=2), rows(pair, picture, 1.0))


@pytest.mark.parametrize("family", QWEN)
def test_after_pixel_pruning(family: str, pairs: Callable[[str], Pair]) -> None:
    pair, picture = pairs(family), drawn(family, "page")
    entered = len(entering(picture, 2 * QWEN[family]))
    whole, found = (rows(pair, picture, keep, pixel_tau=0) for keep in (1.0, 0.5))
    assert len(whole) == len(found) == entered < 48
    assert np.isfinite(found).all()
    assert distance(found, whole) > 20 * LIKE_GGML
    assert np.array_equal(found, rows(pair, picture, 0.5, pixel_tau=0))


def test_a_blank_picture(pairs: Callable[[str], Pair]) -> None:
    """All groups are alike, so nothing is lost."""
    pair, picture = pairs("qwen2_vl"), np.full((6 * 28, 8 * 28, 3), 255, np.uint8)
    assert distance(rows(pair, picture, 0.25), rows(pair, picture, 1.0)) < 20

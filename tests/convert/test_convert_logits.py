"""From pixels to logits: a converted checkpoint computes in llama.cpp what transformers computes from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from halfv_convert import convert
from PIL import Image

from tests.support import hf_reference, pruned, tiny_checkpoints, tiny_tokenizers
from tests.support.converted import Pair, convert_tiny
from tests.support.hf_reference import SIZES, like_ggml, random_picture
from tests.support.mtmd_prompt import MARKER, run_prompt
from tests.support.tiny_checkpoints import CLIP_MEAN, CLIP_STD
from tests.support.tiny_families import FAMILIES

PROMPT = f"what is in {MARKER}the picture? it's 1314 o'clock\n\nyes."
# The largest difference, in standard deviations of the logits. Measured: up to 0.004 and up to 0.0007.
PLAIN, LIKE_GGML = 1e-2, 2e-3


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return partial(convert_tiny, root=tmp_path_factory.getbasetemp())


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / theirs.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_picture(family: str, pairs: Callable[[str], Pair]) -> None:
    pair = pairs(family)
    picture = random_picture(*SIZES[family])
    seen = run_prompt(pair.text, pair.vision, picture, PROMPT)
    plain = hf_reference.logits(family, pair, seen, picture)
    with like_ggml(family):
        rounded = hf_reference.logits(family, pair, seen, picture)

    assert plain.std() > 1
    assert distance(seen.logits, plain) < PLAIN
    assert distance(seen.logits, rounded) < LIKE_GGML

    # The picture matters, or all this would prove little.
    other = run_prompt(pair.text, pair.vision, random_picture(*SIZES[family], seed=2), PROMPT)
    assert distance(other.logits, plain) > 0.1


@pytest.mark.parametrize("family", ["llava_next_mistral"])
def test_tiles(family: str, pairs: Callable[[str], Pair]) -> None:
    """A larger picture becomes tiles. llama.cpp puts no newlines between their rows, so neither does the reference."""
    pair = pairs(family)
    picture = random_picture(168, 84)
    seen = run_prompt(pair.text, pair.vision, picture, PROMPT)
    assert [len(piece) for piece in seen.pictures] == [36, 36, 36]
    with like_ggml():
        assert distance(seen.logits, hf_reference.logits(family, pair, seen, picture)) < LIKE_GGML


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_windows_and_sizes(family: str, pairs: Callable[[str], Pair]) -> None:
    """Another shape: other windows, other interpolated positions."""
    pair = pairs(family)
    patch = hf_reference.QWEN[family]
    picture = random_picture(patch * 18, patch * 10)
    seen = run_prompt(pair.text, pair.vision, picture, PROMPT)
    with like_ggml():
        assert distance(seen.logits, hf_reference.logits(family, pair, seen, picture)) < LIKE_GGML


# --- what comes before the model ---


OURS = [family for family in FAMILIES if family not in (*hf_reference.PREPARED, "lfm2_vl", "gemma4_unified")]


@pytest.mark.parametrize("family", OURS)
def test_transformers_prepares_the_same_pixels(family: str, pairs: Callable[[str], Pair]) -> None:
    """The pixels that the reference was given are those that the checkpoint's own preprocessor makes."""
    picture = random_picture(*SIZES[family])
    load = transformers.AutoImageProcessor.from_pretrained
    prepared = tiny_checkpoints.quiet(load, pairs(family).folder)(images=Image.fromarray(picture), return_tensors="pt")
    pixels = prepared["pixel_values"]
    if patch := (hf_reference.QWEN | hf_reference.LATER_QWEN).get(family):
        expected, grid = hf_reference.qwen_patches(picture, patch)
        assert torch.equal(prepared["image_grid_thw"], grid)
    elif family == "smolvlm":
        expected = hf_reference.smolvlm_pixels(picture)[None]
    elif family.startswith("llava_next"):
        expected, pixels = hf_reference.llava_tiles(picture)[0], pixels[0, 0]
    else:
        expected = hf_reference.normalised(picture, CLIP_MEAN, CLIP_STD)[None]
    assert pixels.shape == expected.shape
    assert torch.allclose(pixels, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(300, 200), (57, 190), (1000, 40)])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_as_many_tokens_as_in_transformers(family: str, size: tuple[int, int], pairs: Callable[[str], Pair]) -> None:
    pair = pairs(family)
    load = transformers.AutoImageProcessor.from_pretrained
    processor = tiny_checkpoints.quiet(load, pair.folder)
    picture = random_picture(*size)
    # llama.cpp's least is 8 tokens, whatever the checkpoint says
    least = {"shortest_edge": 8 * (2 * hf_reference.QWEN[family]) ** 2, "longest_edge": 12845056}
    _, rows, columns = processor(images=Image.fromarray(picture), size=least)["image_grid_thw"][0]
    seen = run_prompt(pair.text, pair.vision, picture, PROMPT)
    assert len(seen.pictures[0]) == rows * columns // 4


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_tokens(family: str, pairs: Callable[[str], Pair]) -> None:
    pair = pairs(family)
    text = "what's in the picture,  Привет\n\n 3333 or  \t🦙?<|im_end|></s>"
    if family == "llava":
        text = text.removesuffix("<|im_end|></s>")
        model = sentencepiece.SentencePieceProcessor(str(pair.folder / "tokenizer.model"))
        expected = [1, *model.encode(text)]
    else:
        expected = transformers.AutoTokenizer.from_pretrained(pair.folder)(text)["input_ids"]
    seen = run_prompt(pair.text, pair.vision, random_picture(*SIZES[family]), f"{text}{MARKER}?")
    assert seen.pieces[0][: len(expected)] == expected


def test_llama_tokenizer_from_json_alone(pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    """Newer transformers save no tokenizer.model."""
    pair = pairs("llava")
    folder = Path(shutil.copytree(pair.folder, tmp_path / "tiny"))
    tiny_tokenizers.write_llama_tokenizer_json(folder)
    (folder / "tokenizer.model").unlink()
    done = convert(folder, tmp_path / "out.gguf", with_profile=False)
    picture = random_picture(*SIZES["llava"])
    jumble = "".join(np.random.default_rng(0).choice(list("theisnowr k?"), 300))  # where the order of joining shows
    for text in (PROMPT, f"{tiny_tokenizers.TEXT}{MARKER}{jumble} 🦙"):
        pieces = [run_prompt(*files, picture, text).pieces for files in ((done.model, done.mmproj), pair[2:])]
        assert [pieces[0][i] for i in (0, 2)] == [pieces[1][i] for i in (0, 2)]


WHOLE = {"ivr.layer": 1, "ivr.keep": 1.0, "ssr.layer": 2, "ssr.update": 1.0, "min_visual_tokens": 1}
HALF = {
    "ivr.layer": 1,
    "ivr.keep": 0.5,
    "ssr.layer": 3,
    "ssr.update": 0.0,
    "ssr.rest": "dropped",
    "min_visual_tokens": 1,
}


@pytest.mark.parametrize(
    "family",
    ["qwen3_vl_moe", "gemma3", "gemma4", "gemma4_small", "gemma4_unified", "glm4v", "mistral3", "paddleocr_vl"],
)
def test_pruned(family: str, pairs: Callable[[str], Pair]) -> None:
    """Stages that prune nothing change nothing, to the bit; ones that do change the answer."""
    pair = pairs(family)
    picture = random_picture(*SIZES[family])
    without, whole, half = (
        run_prompt(pair.text, pair.vision, picture, PROMPT, on_model=partial(pruned.set_profile, profile=profile))
        for profile in (None, WHOLE, HALF)
    )
    assert np.array_equal(without.logits, whole.logits)
    assert distance(half.logits, without.logits) > 0.01

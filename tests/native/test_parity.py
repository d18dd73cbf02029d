"""The native core against the torch reference: the same tokens are kept, and the logits are close."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.dialogue import (
    MODES,
    N_LAYER,
    NEXT_TOKENS,
    QUESTION,
    Model,
    assert_agree,
    connect,
    feed,
    make_prompt,
    nmse,
    picture,
    placed,
)
from tests.support.reference.halfv_torch import Reference, Segment, Text, share
from tests.support.tiny_models import ARCHS, DROP, FREEZE, MROPE_ARCHS, make_tiny, make_tiny_lora

PLAIN_ARCHS = [arch for arch in ARCHS if arch not in MROPE_ARCHS]
GRID, GRIDS = [(9, 12)], [(9, 12), (7, 19)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", MODES)
def test_mode(models: Callable[..., Model], mode: str, arch: str, seed: int) -> None:
    path, reference = models(arch, seed=seed)
    segments = make_prompt(reference, GRID, seed)
    with connect(path, MODES[mode]) as client:
        expected = assert_agree(client, reference, segments, MODES[mode])
    assert np.abs(expected.logits - reference.run(segments).logits).max() > 1e-2


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
@pytest.mark.parametrize("arch", ARCHS)
def test_pictures_and_questions_in_pieces(models: Callable[..., Model], arch: str, profile: dict) -> None:
    path, reference = models(arch, seed=2)
    *before, question = make_prompt(reference, GRIDS, seed=2)
    segments = [*before, Text(question.ids[:4]), Text(question.ids[4:5]), Text(question.ids[5:])]
    with connect(path, profile, n_batch=64, n_ubatch=64) as client:
        assert_agree(client, reference, segments, profile)


def test_pictures_that_nothing_prunes(models: Callable[..., Model]) -> None:
    profile = FREEZE | {"ivr.keep": 1.0, "ssr.update": 1.0}
    path, reference = models("llama", seed=3)
    with connect(path, profile) as client:
        assert_agree(client, reference, make_prompt(reference, GRIDS, seed=3), profile)
        assert [pruned.image_size(client, image) for image in (0, 1)] == [rows * cols for rows, cols in GRIDS]


@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_ubatches_of_any_size(models: Callable[..., Model], arch: str) -> None:
    path, reference = models(arch, seed=3)
    segments = make_prompt(reference, GRIDS, seed=3)
    for n_batch, n_ubatch in ((512, 512), (512, 64), (100, 30), (7, 7), (1, 1)):
        with connect(path, DROP, n_batch=n_batch, n_ubatch=n_ubatch) as client:
            assert_agree(client, reference, segments, DROP)


@pytest.mark.parametrize("arch", ARCHS)
def test_profile_in_the_file(tmp_path: Path, arch: str) -> None:
    path = make_tiny(tmp_path / "model.gguf", arch, seed=4, profile=DROP)
    reference = Reference(path)
    with Client(path) as client:
        assert_agree(client, reference, make_prompt(reference, GRID, seed=4), DROP)


@pytest.mark.parametrize(("ivr_layer", "ssr_layer"), [(1, 2), (1, 6), (1, 5), (3, 5), (5, 6)])
@pytest.mark.parametrize("arch", ["llama", "qwen3vl"])
def test_layers(models: Callable[..., Model], arch: str, ivr_layer: int, ssr_layer: int) -> None:
    profile = DROP | {"ivr.layer": ivr_layer, "ssr.layer": ssr_layer}
    path, reference = models(arch, seed=5)
    with connect(path, profile) as client:
        assert_agree(client, reference, make_prompt(reference, GRID, seed=5), profile)


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
@pytest.mark.parametrize(("ivr_layer", "ssr_layer"), [(1, 2), (1, 4), (2, 3), (3, 4), (4, 5)])
def test_deep_stack(models: Callable[..., Model], ivr_layer: int, ssr_layer: int, profile: dict) -> None:
    # layers 0, 1 and 2 add to visual tokens, which stage II and III may have dropped, moved or frozen by then
    profile = profile | {"ivr.layer": ivr_layer, "ssr.layer": ssr_layer}
    path, reference = models("qwen3vl", seed=6, n_deepstack_layers=3)
    with connect(path, profile, n_ubatch=64) as client:
        assert_agree(client, reference, make_prompt(reference, GRIDS, seed=6), profile)


@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        ("llama", {"n_head_kv": 1}),
        ("llama", {"n_head_kv": 4}),
        ("llama", {"head_dim": 32, "n_head": 6, "n_head_kv": 3}),
        ("qwen2", {"n_head": 8, "n_head_kv": 2}),
        ("qwen2vl", {"n_head_kv": 1}),
        ("qwen3", {"head_dim": 32, "n_head_kv": 4}),
        ("qwen3vl", {"head_dim": 32, "n_head": 3, "n_head_kv": 1}),
    ],
    ids=str,
)
def test_heads(models: Callable[..., Model], arch: str, shape: dict) -> None:
    path, reference = models(arch, seed=7, **shape)
    profile = DROP | {"ssr.rest": "frozen"}
    with connect(path, profile) as client:
        assert_agree(client, reference, make_prompt(reference, GRID, seed=7), profile)


@pytest.mark.parametrize("mode", ["ivr-only", "ssr-only-freeze", "freeze", "freeze-and-update", "top", "drop-all"])
@pytest.mark.parametrize("arch", PLAIN_ARCHS)
def test_pictures_that_are_not_causal(models: Callable[..., Model], arch: str, mode: str) -> None:
    path, reference = models(arch, seed=8)
    with connect(path, MODES[mode]) as client:
        assert_agree(client, reference, make_prompt(reference, GRIDS, seed=8, causal=False), MODES[mode])


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_lora(models: Callable[..., Model], tmp_path: Path, arch: str, profile: dict) -> None:
    path, plain = models(arch, seed=9)
    lora = make_tiny_lora(tmp_path / "lora.gguf", arch, n_layer=N_LAYER)
    adapted = Reference(path, lora=lora, lora_scale=0.5)
    segments = make_prompt(plain, GRID, seed=9)
    assert plain.run(segments, profile).kept != adapted.run(segments, profile).kept
    with connect(path, profile, lora=lora, lora_scale=0.5) as client:
        assert_agree(client, adapted, segments, profile)


# --- numbers that are not f32: as far from the reference as the same model is unpruned ---

# chosen in layer 0, before attention and its cache have rounded anything: the same tokens for any KV type
EARLY = {"ivr.layer": 1, "ivr.keep": 0.5, "ivr.anchors": 1.0, "ssr.layer": 3}
EARLY_MODES = {
    "freeze": EARLY | {"ssr.update": 0.0, "ssr.rest": "frozen"},
    "drop-all": EARLY | {"ssr.update": 0.0, "ssr.rest": "dropped"},
}
WIDE = {"n_embd": 128, "n_head": 2, "n_head_kv": 1}  # head_dim 64: whole blocks of q8_0 and q4_0


def error(path: Path, reference: Reference, segments: list[Segment], profile: dict | None, **options: Any) -> float:
    """NMSE of the logits after the prompt and after some more tokens."""
    with connect(path, profile, **options) as client:
        actual = [feed(client, segments), *(client.decode(token) for token in NEXT_TOKENS)]
    expected = [reference.run(segments, profile).logits, *(reference.decode(token) for token in NEXT_TOKENS)]
    return nmse(np.array(actual), np.array(expected))


ROUNDED = [
    {"flash_attn": True},
    {"type_k": "f16", "type_v": "f16"},
    {"type_k": "q8_0"},
    {"type_k": "q8_0", "type_v": "q8_0", "flash_attn": True},
    {"type_k": "q4_0", "type_v": "q4_0", "flash_attn": True},
]


@pytest.mark.parametrize("mode", EARLY_MODES)
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
@pytest.mark.parametrize("options", ROUNDED, ids=str)
def test_rounded_caches(models: Callable[..., Model], arch: str, mode: str, options: dict) -> None:
    path, reference = models(arch, seed=10, **WIDE)
    segments = make_prompt(reference, GRID, seed=10)
    stock = error(path, reference, segments, None, **options)
    assert 0 < stock < 0.02
    assert error(path, reference, segments, EARLY_MODES[mode], **options) < 4 * stock


@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
@pytest.mark.parametrize("options", ROUNDED, ids=str)
def test_choices_from_rounded_states(models: Callable[..., Model], arch: str, options: dict) -> None:
    path, reference = models(arch, seed=10, **WIDE)
    segments = make_prompt(reference, GRID, seed=10)
    expected = reference.run(segments, DROP)
    with connect(path, DROP, **options) as client:
        assert nmse(feed(client, segments), expected.logits) < 0.1
        assert_mostly_same(pruned.kept(client), expected.kept[0], 0.85)
        assert_mostly_same(pruned.kept(client, stage=3), expected.deep[0], 0.6)


@pytest.mark.parametrize(("ftype", "same", "bound"), [("f16", 1.0, 1e-5), ("q8_0", 0.9, 0.02)])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3"])
def test_weights(models: Callable[..., Model], arch: str, ftype: str, same: float, bound: float) -> None:
    path, reference = models(arch, seed=10, ftype=ftype, **WIDE)
    segments = make_prompt(reference, GRID, seed=10)
    expected = reference.run(segments, FREEZE)
    with connect(path, FREEZE) as client:
        assert nmse(feed(client, segments), expected.logits) < bound
        assert_mostly_same(pruned.kept(client), expected.kept[0], same)


def assert_mostly_same(actual: list[int], expected: list[int], least: float) -> None:
    assert len(actual) == len(expected)
    assert len(set(actual) & set(expected)) >= least * len(expected)


# --- any profile ---


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_visual=st.integers(1, 150),
    n_before=st.integers(0, 5),
    n_question=st.integers(1, 9),
    keep=st.floats(np.float32(0.01), 1, width=32),
    anchors=st.floats(0, 1, width=32),
    layers=st.tuples(st.integers(1, N_LAYER - 1), st.integers(2, N_LAYER)).filter(lambda pair: pair[0] < pair[1]),
    update=st.floats(0, 1, width=32),
    rest=st.sampled_from(["frozen", "dropped"]),
    min_visual=st.integers(1, 80),
)
def test_counts(
    models: Callable[..., Model],
    n_visual: int,
    n_before: int,
    n_question: int,
    keep: float,
    anchors: float,
    layers: tuple[int, int],
    update: float,
    rest: str,
    min_visual: int,
) -> None:
    path, reference = models("llama", seed=11)
    profile = {
        "ivr.layer": layers[0],
        "ivr.keep": keep,
        "ivr.anchors": anchors,
        "ssr.layer": layers[1],
        "ssr.update": update,
        "ssr.rest": rest,
        "min_visual_tokens": min_visual,
    }
    before = [Text(range(20, 20 + n_before))] if n_before else []
    segments = placed([*before, picture(reference, 1, n_visual), Text(QUESTION[:n_question])])
    with connect(path, profile, n_batch=64, n_ubatch=64) as client:
        assert_agree(client, reference, segments, profile, atol=1e-3)
        assert pruned.image_size(client) == n_visual
        kept, deep = pruned.kept(client), pruned.kept(client, stage=3)

    whole = n_visual < min_visual
    n_kept = n_visual if whole else max(1, share(keep, n_visual))
    n_deep = n_kept if whole or layers[1] == N_LAYER else min(n_kept, share(update, n_visual))
    assert (len(kept), len(deep)) == (n_kept, n_deep)
    assert kept == sorted(set(kept)) and deep == sorted(set(deep))
    assert set(deep) <= set(kept) <= set(range(n_visual))

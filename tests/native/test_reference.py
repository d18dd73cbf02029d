"""The torch reference without a profile is llama.cpp; with one it keeps what the method promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from halfv_edge.testing.client import Client, DecodeError
from tests.support.dialogue import feed, make_prompt, nmse
from tests.support.reference.halfv_torch import Prepare, Profile, Reference, Text, cover, share, top, visual_scores
from tests.support.tiny_models import ARCHS, DROP, MROPE_ARCHS, make_tiny, make_tiny_lora

N_LAYER = 6
PROFILE = DROP | {"min_visual_tokens": 8}


@pytest.fixture(scope="module", params=ARCHS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / f"{request.param}.gguf", request.param, seed=3)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("arch", ARCHS)
def test_dense_equals_llama_cpp(tmp_path: Path, arch: str, seed: int) -> None:
    shape = {"head_dim": 32, "n_head_kv": 1} if seed == 1 and arch in ("llama", "qwen3", "qwen3vl") else {}
    path = make_tiny(tmp_path / "model.gguf", arch, seed=seed, **shape)
    reference = Reference(path)
    segments = make_prompt(reference, [(6, 10), (9, 8)], seed)
    expected = reference.run(segments).logits
    assert expected.std() > 0.5
    with Client(path, n_batch=48, n_ubatch=32) as client:
        np.testing.assert_allclose(feed(client, segments), expected, atol=1e-4)
        for token in (7, 300, int(expected.argmax())):
            np.testing.assert_allclose(client.decode(token), reference.decode(token), atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_lora_equals_llama_cpp(tmp_path: Path, arch: str) -> None:
    path = make_tiny(tmp_path / "model.gguf", arch)
    lora = make_tiny_lora(tmp_path / "lora.gguf", arch)
    plain, adapted = Reference(path), Reference(path, lora=lora, lora_scale=0.5)
    segments = make_prompt(plain, [(6, 10)])
    expected = adapted.run(segments).logits
    assert nmse(plain.run(segments).logits, expected) > 0.01
    with Client(path, lora=lora, lora_scale=0.5) as client:
        np.testing.assert_allclose(feed(client, segments), expected, atol=1e-4)


@pytest.mark.parametrize(("ftype", "bound"), [("f16", 1e-5), ("q8_0", 1e-2), ("q4_0", 1e-2)])
def test_quantised_weights_are_read_as_llama_cpp_reads_them(tmp_path: Path, ftype: str, bound: float) -> None:
    path = make_tiny(tmp_path / "model.gguf", "llama", ftype=ftype)
    reference = Reference(path)
    segments = make_prompt(reference, [(6, 10)])
    with Client(path) as client:
        assert nmse(feed(client, segments), reference.run(segments).logits) < bound


def test_client_raises_with_the_return_code(tmp_path: Path) -> None:
    with Client(make_tiny(tmp_path / "model.gguf", "llama"), n_ctx=256) as client:
        with pytest.raises(DecodeError, match="llama_decode returned 1") as full:
            client.text([5] * 300)
        assert full.value.code == 1
        with pytest.raises(RuntimeError, match="no logits"):
            client.logits()


def test_share_counts_as_decimals_do() -> None:
    assert share(0.05, 60) == 3
    assert share(0.05, 59) == 2
    assert share(0.7, 10) == 7
    assert share(1.0, 64) == 64
    assert share(0.0, 64) == 0


def test_top_prefers_the_first_of_equals() -> None:
    assert top(np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 4).tolist() == [1, 2, 4, 3]


@pytest.mark.parametrize("seed", range(8))
def test_cover_is_farthest_point_sampling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, n_anchors = int(rng.integers(1, 20)), int(rng.integers(0, 5))
    features = rng.standard_normal((20, 6))
    anchors = rng.permutation(20)[: min(n_anchors, count)].tolist()

    def distance(i: int, j: int) -> float:
        a, b = features[i], features[j]
        return 1 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))

    chosen = anchors or [0]
    while len(chosen) < count:
        rest = [i for i in range(20) if i not in chosen]
        chosen = [*chosen, max(rest, key=lambda i: min(distance(i, j) for j in chosen))]
    assert cover(features, anchors, count).tolist() == sorted(chosen)


def test_cover_prefers_the_first_of_equals() -> None:
    pairs = np.repeat(np.eye(3), 2, axis=0)
    assert cover(pairs, [3], 3).tolist() == [0, 3, 4]
    assert cover(pairs, [3], 4).tolist() == [0, 1, 3, 4]


def test_scores_are_unscaled_and_over_visual_keys() -> None:
    rng = np.random.default_rng(0)
    query, keys = rng.standard_normal((4, 8)), rng.standard_normal((2, 5, 8))
    expected = np.zeros(5)
    for head in range(4):
        weights = np.array([np.exp(query[head] @ keys[head // 2, i]) for i in range(5)])
        expected += weights / weights.sum() / 4
    np.testing.assert_allclose(visual_scores(torch.from_numpy(query), torch.from_numpy(keys)), expected)


def test_each_image_has_its_own_quota(reference: Reference) -> None:
    result = reference.run(make_prompt(reference, [(6, 10), (9, 8)]), PROFILE)
    assert [len(kept) for kept in result.kept] == [30, 36]
    assert [len(deep) for deep in result.deep] == [6, 7]
    for kept, deep, n_tokens in zip(result.kept, result.deep, (60, 72), strict=True):
        assert kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < n_tokens
        assert deep == sorted(set(deep)) and set(deep) <= set(kept)


@pytest.mark.parametrize(
    ("update", "rest", "visual_kv"),
    [(0.1, "dropped", 6), (0.0, "dropped", 0), (0.1, "frozen", 30), (0.0, "frozen", 30), (0.9, "dropped", 30)],
)
def test_each_stage_holds_what_reached_it(reference: Reference, update: float, rest: str, visual_kv: int) -> None:
    segments = make_prompt(reference, [(6, 10)])
    n_text = sum(len(segment.ids) for segment in segments if isinstance(segment, Text))
    reference.run(segments, PROFILE | {"ssr.update": update, "ssr.rest": rest})
    held = [keys.shape[1] - n_text for keys, _, _ in reference.kv]
    assert held == [60, 60, 30, 30, visual_kv, visual_kv]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        {"ivr.keep": 1.0, "ssr.layer": N_LAYER},
        {"ivr.keep": 1.0, "ssr.update": 1.0, "ssr.rest": "frozen"},
        {"ivr.keep": 1.0, "ssr.update": 1.0},
        {"min_visual_tokens": 61},
    ],
)
def test_a_profile_that_prunes_nothing_is_dense(reference: Reference, change: dict, seed: int) -> None:
    segments = make_prompt(reference, [(6, 10)], seed)
    dense = reference.run(segments)
    dense_next = reference.decode(9)
    result = reference.run(segments, PROFILE | change)
    assert result.kept == result.deep == [list(range(60))]
    np.testing.assert_allclose(result.logits, dense.logits, atol=1e-9)
    np.testing.assert_allclose(reference.decode(9), dense_next, atol=1e-9)


def test_a_small_image_stays_beside_a_pruned_one(reference: Reference) -> None:
    result = reference.run(make_prompt(reference, [(2, 3), (6, 10)]), PROFILE)
    assert result.kept[0] == result.deep[0] == list(range(6))
    assert (len(result.kept[1]), len(result.deep[1])) == (30, 6)


def test_at_least_one_token_is_kept(reference: Reference) -> None:
    assert reference.run(make_prompt(reference, [(6, 10)]), PROFILE | {"ivr.keep": 0.001}).kept == [[0]]


def test_frozen_states_stop_at_stage_three(reference: Reference) -> None:
    result = reference.run(make_prompt(reference, [(6, 10)]), PROFILE | {"ssr.rest": "frozen"}, states=True)
    frozen = [4 + i for i in result.kept[0] if i not in result.deep[0]]
    updated = [4 + i for i in result.deep[0]]
    states = result.states
    assert len(states) == N_LAYER + 1
    assert torch.equal(states[4][frozen], states[N_LAYER][frozen])
    assert not torch.equal(states[3][frozen], states[4][frozen])
    assert not torch.equal(states[4][updated], states[5][updated])


@pytest.mark.parametrize("rest", ["frozen", "dropped"])
def test_decode_goes_on_as_a_longer_prompt_would(reference: Reference, rest: str) -> None:
    # without anchors and stage III updates the choice does not depend on the last token
    profile = PROFILE | {"ivr.anchors": 0.0, "ssr.update": 0.0, "ssr.rest": rest}
    *before, question = make_prompt(reference, [(6, 10), (9, 8)])
    tokens = [300, 17, 9]
    reference.run([*before, question], profile)
    steps = [reference.decode(token) for token in tokens]
    for count, step in enumerate(steps, start=1):
        longer = Text([*question.ids, *tokens[:count]])
        np.testing.assert_allclose(step, reference.run([*before, longer], profile).logits, atol=1e-9)


def test_the_last_token_chooses(reference: Reference) -> None:
    *before, question = make_prompt(reference, [(6, 10)])
    kept = [reference.run([*before, Text([*question.ids, token])], PROFILE).kept for token in range(10, 20)]
    assert any(choice != kept[0] for choice in kept)


def test_choices_do_not_hang_on_float_noise(model: Path, reference: Reference) -> None:
    single = Reference(model, torch.float32)
    choices = []
    for seed in range(4):
        segments = make_prompt(reference, [(6, 10), (9, 8)], seed)
        expected, result = reference.run(segments, PROFILE), single.run(segments, PROFILE)
        assert (result.kept, result.deep) == (expected.kept, expected.deep)
        np.testing.assert_allclose(result.logits, expected.logits, atol=1e-3)
        choices.append(result.kept)
    assert choices[0] != choices[1] != choices[2] != choices[3]


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_pictures_that_are_not_causal_equal_llama_cpp(tmp_path: Path, arch: str) -> None:
    path = make_tiny(tmp_path / "model.gguf", arch)
    reference = Reference(path)
    segments = make_prompt(reference, [(6, 10), (9, 8)], causal=False)
    expected = reference.run(segments).logits
    causal = reference.run(make_prompt(reference, [(6, 10), (9, 8)])).logits
    assert np.abs(expected - causal).max() > 1e-2
    with Client(path) as client:
        np.testing.assert_allclose(feed(client, segments), expected, atol=1e-4)


def test_later_turns_go_on_as_decoding_does(reference: Reference) -> None:
    *before, question = make_prompt(reference, [(6, 10)])
    reference.run([*before, question], PROFILE)
    expected = [reference.decode(token) for token in (300, 17, 9)][-1]
    turns = [*before, Text(question.ids, asks=True), Text([300], asks=True), Text([17]), Text([9])]
    np.testing.assert_allclose(reference.run(turns, PROFILE).logits, expected, atol=1e-9)


def test_prepared_coverage_leaves_room_for_anchors(reference: Reference) -> None:
    *before, question = make_prompt(reference, [(6, 10)])
    covered = reference.run([*before, question], PROFILE | {"ivr.keep": 0.4, "ivr.anchors": 0.0}).kept[0]
    kept = reference.run([*before, Prepare(), question], PROFILE).kept[0]
    assert (len(covered), len(kept)) == (24, 30) and set(covered) < set(kept)


def test_text_before_preparing_does_not_see_the_anchors(reference: Reference) -> None:
    *before, question = make_prompt(reference, [(6, 10)])
    profile = PROFILE | {"ssr.update": 0.0}
    middle, stage2 = Text([33, 34, 35]), PROFILE["ivr.layer"]
    n_before = 4 + 60 + len(middle.ids)

    def states(*ids: int) -> torch.Tensor:
        result = reference.run([*before, middle, Prepare(), Text(ids)], profile, states=True)
        return torch.stack(result.states)[stage2:, n_before - len(middle.ids) : n_before]

    np.testing.assert_allclose(states(*question.ids), states(9), atol=1e-9)


def test_top_up_brings_back_pruned_tokens(reference: Reference) -> None:
    *before, question = make_prompt(reference, [(6, 10)])
    question.asks = True
    first = reference.run([*before, question], PROFILE)
    second = reference.run([*before, question, Text([33, 34])], PROFILE)
    topped = reference.run([*before, question, Text([33, 34], topup=True)], PROFILE)
    assert second.kept == first.kept
    assert len(topped.kept[0]) == 36 and set(first.kept[0]) < set(topped.kept[0])
    assert len(topped.deep[0]) == 12 and set(first.deep[0]) < set(topped.deep[0])
    assert np.abs(topped.logits - second.logits).max() > 1e-3


def test_text_positions_can_be_given(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "model.gguf", "qwen2vl")
    reference = Reference(path)
    *before, question = make_prompt(reference, [(6, 10)])
    segments = [*before, Text(question.ids, pos=40)]
    expected = reference.run(segments).logits
    assert np.abs(expected - reference.run([*before, question]).logits).max() > 1e-3
    with Client(path) as client:
        np.testing.assert_allclose(feed(client, segments), expected, atol=1e-4)


def test_a_prompt_must_end_with_text(reference: Reference) -> None:
    with pytest.raises(ValueError, match="must end with text"):
        reference.run(make_prompt(reference, [(6, 10)])[:-1])


def test_profile_takes_both_spellings() -> None:
    dotted = Profile.of(PROFILE | {"version": 1})
    assert dotted == Profile.of({key.replace(".", "_"): value for key, value in PROFILE.items()})
    assert dotted.ssr_rest == "dropped"


def test_mrope_archs_are_those_of_the_reference(model: Path, reference: Reference) -> None:
    assert reference.is_mrope == (model.stem in MROPE_ARCHS)

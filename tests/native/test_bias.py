"""Attention to kept tokens by how many they stand for (halfv.ivr.bias), against the torch reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing import random_models
from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.dialogue import (
    N_LAYER,
    QUESTION,
    Model,
    assert_counts,
    assert_parts_agree,
    assert_prompt_agrees,
    connect,
    feed,
    make_prompt,
    nmse,
    tell,
)
from tests.support.reference.halfv_torch import Text
from tests.support.tiny_models import ARCHS, DROP, FREEZE, make_tiny
from tests.support.waiting import load, save

GRID, GRIDS = [(9, 12)], [(9, 12), (7, 13)]
FEW = {"ivr.keep": 0.25}
FURTHER = {"further.layers": (4,), "further.keep": (0.1,)}
PROFILES = {
    "stage II": DROP | FEW | {"ssr.layer": N_LAYER, "ivr.bias": 1.0},
    "stage III with fewer": DROP | FEW | {"ivr.bias": 0.5},
    "stage III with frozen ones": FREEZE | FEW | {"ivr.bias": 1.0},
    "the question asks": DROP | FEW | {"ivr.query": "question", "ivr.bias": 1.0},
    "fewer twice": DROP | {"ivr.layer": 1, "ssr.layer": 2, "ssr.update": 0.3, "ivr.bias": 1.0} | FURTHER,
    "some heads": DROP | FEW | {"heads.layer": 3, "heads.keep": 0.5, "ivr.bias": 1.0},
}  # fmt: skip
TOLERANCE = 1e-4
OTHER = [43, 44, 45]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", PROFILES)
def test_stages(models: Callable[..., Model], name: str, arch: str) -> None:
    assert_parts_agree(models(arch), GRIDS, PROFILES[name], ("ivr.bias",))


@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
def test_ubatches_of_any_size(models: Callable[..., Model], n_ubatch: int) -> None:
    profile = PROFILES["fewer twice"]
    assert_prompt_agrees(models("qwen2vl"), GRIDS, profile, n_batch=n_ubatch, n_ubatch=n_ubatch)


@pytest.mark.parametrize("name", ["stage III with fewer", "stage III with frozen ones"])
def test_pictures_that_are_not_causal(models: Callable[..., Model], name: str) -> None:
    assert_prompt_agrees(models("llama"), GRIDS, PROFILES[name], causal=False)


@pytest.mark.parametrize("arch", ["llama", "qwen3vl"])
@pytest.mark.parametrize("name", PROFILES)
def test_prepared_and_topped_up(models: Callable[..., Model], name: str, arch: str) -> None:
    """Tokens that come later stand for themselves."""
    assert_prompt_agrees(models(arch), GRID, PROFILES[name], prepared=True)


def test_flash_attention_with_half_floats(models: Callable[..., Model]) -> None:
    profile = PROFILES["stage III with fewer"]
    path, reference = models("qwen2vl")
    segments = make_prompt(reference, GRIDS)
    expected = reference.run(segments, profile).logits
    without = reference.run(segments, profile | {"ivr.bias": 0.0}).logits
    with connect(path, profile, flash_attn=True, type_k="f16", type_v="f16") as client:
        error = nmse(feed(client, segments), expected)
    assert error < 1e-4 < 1e-2 < nmse(without, expected)


def test_the_same_bits_where_nothing_is_left_out(models: Callable[..., Model]) -> None:
    """And where the key is 0, whatever is left out."""
    path, reference = models("qwen2vl")
    segments = make_prompt(reference, GRIDS)

    def told(profile: dict) -> list[bytes]:
        with connect(path, profile) as client:
            return [feed(client, segments).tobytes(), client.decode(7).tobytes()]

    whole = DROP | {"ivr.keep": 1.0}
    assert told(whole | {"ivr.bias": 1.0}) == told(whole)
    small = DROP | {"min_visual_tokens": 1000}
    assert told(small | {"ivr.bias": 1.0}) == told(small)
    assert told(DROP | {"ivr.bias": 0.0}) == told(DROP) != told(DROP | {"ivr.bias": 1.0})


@pytest.mark.parametrize("name", PROFILES)
def test_costs_as_foretold(models: Callable[..., Model], name: str) -> None:
    path, reference = models("llama")
    segments = make_prompt(reference, GRID)
    counts = [len(segments[0].ids), 9 * 12, len(segments[2].ids)]
    weighed = assert_counts((path, reference), PROFILES[name], segments, *counts)
    plain = assert_counts((path, reference), PROFILES[name] | {"ivr.bias": 0.0}, segments, *counts)
    assert weighed.flops_spent > plain.flops_spent


def told(client: Client, seq: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return client.logits(), client.decode(7, seq=seq)


@pytest.mark.parametrize("way", ["removed", "prepared", "every question prepares", "topped up", "saved", "copied"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_removed_question(models: Callable[..., Model], arch: str, way: str) -> None:
    """It leaves no trace in what tokens stand for."""
    profile = PROFILES["fewer twice"]
    path, reference = models(arch)
    *shown, question = make_prompt(reference, GRIDS)

    def begin(client: Client) -> int:
        pruned.set_prepare(client, way == "every question prepares")
        for segment in shown:
            tell(client, segment)
        return client.next_pos[0]

    with connect(path, profile) as client:
        begin(client)
        client.text(OTHER)
        fresh = told(client)
    with connect(path, profile, n_seq_max=2) as client:
        begun, seq = begin(client), 0
        if way == "prepared":
            pruned.prepare(client)
        client.text(question.ids)
        if way == "topped up":
            pruned.topup(client)
            client.text(QUESTION)
        if way == "saved":
            state = save(client, 0)
            assert load(client, state, 0) == len(state)
        if way == "copied":
            llama_h.llama_memory_seq_cp(client.memory, 0, 1, -1, -1)
            seq = 1
        assert llama_h.llama_memory_seq_rm(client.memory, seq, begun, -1)
        client.text(OTHER, pos=begun, seq=seq)
        again = told(client, seq)
    np.testing.assert_allclose(again, fresh, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
@pytest.mark.parametrize("way", ["saved", "copied", "copied to another stream"])
def test_what_tokens_stand_for_goes_along(models: Callable[..., Model], way: str, arch: str) -> None:
    path, reference = models(arch)
    segments = make_prompt(reference, GRIDS)
    options = {"n_seq_max": 2, "kv_unified": way != "copied to another stream"}
    with connect(path, PROFILES["stage III with fewer"], **options) as client:
        feed(client, segments)
        state, begun = save(client, 0), client.next_pos[0]
        expected = client.decode(7)
        if way == "saved":
            assert load(client, state, 1) == len(state)
        else:
            assert llama_h.llama_memory_seq_rm(client.memory, 0, begun, -1)
            llama_h.llama_memory_seq_cp(client.memory, 0, 1, -1, -1)
        client.next_pos[1] = begun
        np.testing.assert_allclose(client.decode(7, seq=1), expected, rtol=0, atol=TOLERANCE)


def test_states_of_both_kinds(models: Callable[..., Model]) -> None:
    """One of a context without the key says nothing of what tokens stand for, and goes on so."""
    weighed = PROFILES["stage III with fewer"]
    plain = weighed | {"ivr.bias": 0.0}
    path, reference = models("llama")
    segments = make_prompt(reference, GRIDS)
    with connect(path, plain) as client:
        feed(client, segments)
        state, begun = save(client, 0), client.next_pos[0]
        expected = client.decode(7)
    with connect(path, weighed) as client:
        assert load(client, state, 0) == len(state)
        client.next_pos[0] = begun
        np.testing.assert_allclose(client.decode(7), expected, rtol=0, atol=TOLERANCE)
        assert load(client, state, 0) == len(state)
        assert len(save(client, 0)) == len(state)


def test_picture_whose_other_tokens_are_removed(models: Callable[..., Model]) -> None:
    """Stages then hold the same tokens in the same cells, and yet one mask does not do for them."""
    profile = PROFILES["stage II"] | {"ivr.keep": 0.5}
    path, reference = models("llama")
    *shown, question = make_prompt(reference, GRID)
    found = []
    for n_seq in (1, 2):
        with connect(path, profile, n_seq_max=n_seq) as client:
            for seq in reversed(range(n_seq)):  # with another sequence, whose stages are not alike, each has its mask
                for segment in shown:
                    if isinstance(segment, Text):
                        client.text(segment.ids, logits_last=False, seq=seq)
                    else:
                        client.image(segment.embd, segment.pos, seq=seq)
                client.text(question.ids, seq=seq)
            begins, kept = len(shown[0].ids), pruned.kept(client)
            for token in sorted(set(range(9 * 12)) - set(kept)):
                llama_h.llama_memory_seq_rm(client.memory, 0, begins + token, begins + token + 1)
            state = save(client, 0)
            assert load(client, state, 0) == len(state)  # into the first cells of each
            found.append(client.decode(7))
            assert len(set(pruned.stats(client).kv_cells[:2])) == 1
    np.testing.assert_allclose(*found, rtol=0, atol=TOLERANCE)


def test_positions_that_no_longer_tell_tokens_apart(models: Callable[..., Model]) -> None:
    """Their tokens then stand for themselves alone."""
    path, reference = models("llama")
    segments = make_prompt(reference, GRID)
    with connect(path, PROFILES["stage II"]) as client:
        feed(client, segments)
        llama_h.llama_memory_seq_div(client.memory, 0, 0, -1, 2)
        client.next_pos[0] = (client.next_pos[0] + 1) // 2
        client.decode(300)  # keys turn with it
        divided, begun = save(client, 0), client.next_pos[0]
        found = client.decode(7)
    with connect(path, PROFILES["stage II"] | {"ivr.bias": 0.0}) as client:
        assert load(client, divided, 0) == len(divided)
        client.next_pos[0] = begun
        np.testing.assert_allclose(client.decode(7), found, rtol=0, atol=TOLERANCE)


def test_masks_that_hold_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads weigh these each by its own, and so would they the bias."""
    monkeypatch.setattr(random_models, "OTHER_ARCHS", ("refact",))  # with ALiBi
    path = make_tiny(tmp_path / "model.gguf", "refact", n_layer=N_LAYER)
    with pytest.raises(halfv_cpp.CallError, match=r"halfv\.ivr\.bias = 0\.5 is not valid: .* it must be 0"):
        connect(path, DROP | {"ivr.bias": 0.5})

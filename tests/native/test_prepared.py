"""Prepare and top-up: the native core against the torch reference, and what halfv.h promises about them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from halfv_cpp import llama_h
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.dialogue import (
    MODES,
    NEXT_TOKENS,
    PREFIX,
    QUESTION,
    Model,
    assert_agree,
    connect,
    feed,
    make_prompt,
    picture,
    placed,
    tell,
)
from tests.support.pruned import NOTHING, OK, OUTCOME
from tests.support.reference.halfv_torch import Image, Prepare, Reference, Segment, Text
from tests.support.tiny_models import ARCHS, DROP, FREEZE

GRID, GRIDS = [(9, 12)], [(9, 12), (7, 13)]
N_VISUAL = 108
PLENTY = 1 << 30
LATE = 8  # tokens that a question adds to a picture that is in already; its anchors would be 9 or 10
SECOND, THIRD = [43, 44, 45, 46, 48], [53, 54]


def asked(segments: list[Segment]) -> list[Segment]:
    """The same prompt with an answer of two tokens."""
    *before, question = segments
    return [*before, Text(question.ids, asks=True), Text([300], asks=True), Text([17], asks=True)]


# --- prepare ---


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", MODES)
def test_prepared_picture(models: Callable[..., Model], mode: str, arch: str) -> None:
    path, reference = models(arch, seed=1)
    *before, question = make_prompt(reference, GRID, seed=1)
    with connect(path, MODES[mode]) as client:
        assert_agree(client, reference, [*before, Prepare(), question], MODES[mode])


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("layout", ["text between", "two at once", "one by one", "one of two", "pieces", "twice"])
def test_prepared_prompt(models: Callable[..., Model], layout: str, arch: str, profile: dict) -> None:
    path, reference = models(arch, seed=2)
    start, first, middle, second, question = make_prompt(reference, GRIDS, seed=2)
    ready = Prepare()
    segments = {
        "text between": [start, first, middle, ready, question],
        "two at once": [start, first, middle, second, ready, question],
        "one by one": [start, first, ready, middle, second, ready, question],
        "one of two": [start, first, ready, middle, second, question],
        "pieces": [start, first, middle, ready, Text(question.ids[:3]), Text(question.ids[3:])],
        "twice": [start, first, ready, ready, Text(question.ids[:3]), ready, Text(question.ids[3:])],
    }[layout]
    with connect(path, profile, n_batch=64, n_ubatch=64) as client:
        assert_agree(client, reference, segments, profile)


@pytest.mark.parametrize("rest", ["frozen", "dropped"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
def test_prepared_in_small_ubatches(models: Callable[..., Model], arch: str, rest: str) -> None:
    # stage III takes coverage and anchors in one go, in the order of the picture
    profile = FREEZE | {"ivr.anchors": 0.5, "ssr.update": 0.3, "ssr.rest": rest}
    path, reference = models(arch, seed=2)
    *before, question = make_prompt(reference, GRIDS, seed=2)
    with connect(path, profile, n_ubatch=16) as client:
        assert_agree(client, reference, [*before, Prepare(), question], profile)


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_prepared_picture_that_is_not_causal(models: Callable[..., Model], arch: str, profile: dict) -> None:
    path, reference = models(arch, seed=3)
    *before, question = make_prompt(reference, GRID, seed=3, causal=False)
    for between in ([], [Text([33, 34, 35])]):
        with connect(path, profile) as client:
            assert_agree(client, reference, [*before, *between, Prepare(), question], profile)


@pytest.mark.parametrize("mode", ["ivr-only", "freeze", "top"])
@pytest.mark.parametrize("arch", ["llama", "qwen3vl"])
def test_prepared_without_anchors_is_the_exact_mode(models: Callable[..., Model], arch: str, mode: str) -> None:
    path, reference = models(arch, seed=4)
    profile = MODES[mode] | {"ivr.anchors": 0.0}
    *before, question = make_prompt(reference, GRID, seed=4)
    seen = []
    for segments in ([*before, question], [*before, Prepare(), question]):
        with connect(path, profile) as client:
            logits = [feed(client, segments), *(client.decode(token) for token in NEXT_TOKENS)]
            seen.append((np.array(logits), pruned.kept(client), pruned.kept(client, stage=3)))
    exact, prepared = seen
    assert exact[1:] == prepared[1:]
    np.testing.assert_allclose(prepared[0], exact[0], rtol=0, atol=1e-4)


def test_prepared_coverage_needs_only_anchors(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=5)
    *before, question = make_prompt(reference, GRID, seed=5)
    n_kept, n_late, n_text = 54, LATE, len(PREFIX)
    with connect(path, FREEZE) as client:
        for segment in [*before, Prepare()]:
            tell(client, segment)
        ready = pruned.stats(client)
        assert ready.outcome == OUTCOME["pending"]
        assert (ready.n_kept, ready.n_pending) == (n_kept - n_late, N_VISUAL - n_kept + n_late)
        assert list(ready.kv_cells) == [n_text + N_VISUAL, *[n_text + n_kept - n_late] * 2]

        client.text(question.ids)
        done = pruned.stats(client)
        assert (done.outcome, done.n_kept, done.n_pending) == (OUTCOME["pruned"], n_kept, 0)
        n_text += len(question.ids)
        assert list(done.kv_cells) == [n_text + N_VISUAL, *[n_text + n_kept] * 2]


def test_nothing_to_prepare(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=6)
    segments = make_prompt(reference, GRID, seed=6)
    with connect(path, FREEZE) as client:
        assert pruned.prepare(client) == NOTHING
        client.text(PREFIX, logits_last=False)
        assert pruned.prepare(client) == NOTHING
        tell(client, segments[1])
        assert pruned.prepare(client) == OK
        client.text(QUESTION)
        assert pruned.prepare(client) == NOTHING
        reference.run([*segments[:2], Prepare(), Text(QUESTION)], FREEZE)
        np.testing.assert_allclose(client.decode(9), reference.decode(9), rtol=0, atol=1e-4)


# --- top-up ---


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", MODES)
def test_second_question(models: Callable[..., Model], mode: str, arch: str) -> None:
    path, reference = models(arch, seed=7)
    segments = [*asked(make_prompt(reference, GRID, seed=7)), Text(SECOND, topup=True)]
    with connect(path, MODES[mode], PLENTY) as client:
        expected = assert_agree(client, reference, segments, MODES[mode])
    n_first = N_VISUAL // 2
    assert len(expected.kept[0]) == (N_VISUAL if mode.startswith("ssr-only") else n_first + LATE)


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("layout", ["third question", "pieces", "after prepare", "new picture", "prepared new picture"])
def test_later_questions(models: Callable[..., Model], layout: str, arch: str, profile: dict) -> None:
    path, reference = models(arch, seed=8)
    prompt = make_prompt(reference, GRIDS, seed=8)
    turn = asked(prompt)
    new = picture(reference, 8, 11, seed=9)
    segments = {
        "third question": [*turn, Text(SECOND, asks=True, topup=True), Text([300], asks=True), Text(THIRD, topup=True)],
        "pieces": [*turn, Text(SECOND, topup=True), Text(THIRD)],
        "after prepare": [*turn[:-3], Prepare(), *turn[-3:], Text(SECOND, topup=True)],
        "new picture": [*turn, Text([50, 51]), new, Text(SECOND, topup=True)],
        "prepared new picture": [*turn, Text([50, 51]), new, Prepare(), Text(SECOND, topup=True)],
    }[layout]
    with connect(path, profile, PLENTY, n_batch=64, n_ubatch=64) as client:
        assert_agree(client, reference, placed(segments), profile)


def test_second_question_about_a_picture_that_is_not_causal(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=10)
    segments = [*asked(make_prompt(reference, GRID, seed=10, causal=False)), Text(SECOND, topup=True)]
    with connect(path, DROP, PLENTY) as client:
        assert_agree(client, reference, segments, DROP)


@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
def test_storing_changes_nothing(models: Callable[..., Model], arch: str, profile: dict) -> None:
    path, reference = models(arch, seed=11)
    segments = [*asked(make_prompt(reference, GRIDS, seed=11)), Text(SECOND)]
    seen = []
    for undo_bytes in (0, PLENTY):
        with connect(path, profile, undo_bytes) as client:
            pruned.set_undo(client, undo_bytes > 0)
            seen.append(np.array([feed(client, segments), *(client.decode(token) for token in NEXT_TOKENS)]))
            assert (pruned.stats(client).n_stored > 0) == (undo_bytes > 0)
    assert seen[0].tobytes() == seen[1].tobytes()


def test_nothing_to_top_up(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=12)
    segments = make_prompt(reference, GRID, seed=12)
    with connect(path, FREEZE, 0) as client:
        feed(client, segments)
        assert pruned.topup(client) == NOTHING
    with connect(path, FREEZE | {"ivr.anchors": 1.0}, PLENTY) as client:
        assert pruned.topup(client) == NOTHING
        feed(client, segments)
        for n_left in range(pruned.stats(client).n_stored, 0, -LATE):
            assert pruned.stats(client).n_stored == n_left
            assert pruned.topup(client) == OK
            client.text(SECOND)
        assert pruned.kept(client) == list(range(N_VISUAL))
        assert pruned.stats(client).n_stored == 0
        assert pruned.topup(client) == NOTHING


def test_loading_a_waiting_picture_over_an_answered_one(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=15)
    image = make_prompt(reference, GRID, seed=15)[1]
    with connect(path, FREEZE) as client:
        tell(client, image)
        saved, next_pos = state_of(client), list(client.next_pos)
        client.text(QUESTION)
        size = llama_h.llama_state_seq_set_data(client.ctx, saved, len(saved), 0)
        assert size == len(saved) and list(pruned.stats(client).kv_cells) == [N_VISUAL, 0, 0]
        client.next_pos = next_pos
        client.text(SECOND)
        expected = reference.run([image, Text(SECOND)], FREEZE).logits
        np.testing.assert_allclose(client.logits(), expected, rtol=0, atol=1e-4)


def state_of(client: Client) -> ctypes.Array:
    size = llama_h.llama_state_seq_get_size(client.ctx, 0)
    state = (ctypes.c_uint8 * size)()
    assert llama_h.llama_state_seq_get_data(client.ctx, state, size, 0) == size
    return state


# --- any conversation ---

PIECE = st.one_of(
    st.tuples(st.just("picture"), st.integers(1, 12), st.integers(1, 14)),
    st.tuples(st.just("text"), st.integers(1, 6)),
    st.just(("prepare",)),
)
TURN = st.tuples(st.lists(PIECE, max_size=4), st.integers(1, 9), st.booleans(), st.integers(0, 2))


def conversation(reference: Reference, turns: list[tuple]) -> list[Segment]:
    """Turns of pieces, a question (perhaps with a top-up) and some tokens of an answer."""
    segments: list[Segment] = []
    for number, (pieces, n_question, topup, n_answer) in enumerate(turns):
        for kind, *size in pieces:
            if kind == "prepare":
                segments.append(Prepare())
            elif kind == "text":
                segments.append(Text(range(30, 30 + size[0])))
            elif not (segments and isinstance(segments[-1], Image)):  # without text between they would be one
                segments.append(picture(reference, *size, seed=len(segments)))
        segments.append(Text(QUESTION[:n_question], asks=True, topup=topup and number > 0))
        segments += [Text([token], asks=True) for token in NEXT_TOKENS[:n_answer]]
    return placed(segments)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    arch=st.sampled_from(ARCHS),
    turns=st.lists(TURN, min_size=1, max_size=3),
    keep=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    anchors=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    layers=st.sampled_from([(1, 2), (2, 4), (3, 6), (1, 6)]),
    update=st.sampled_from([0.0, 0.05, 0.2]),
    rest=st.sampled_from(["frozen", "dropped"]),
    n_ubatch=st.sampled_from([64, 512]),
)
def test_conversation(
    models: Callable[..., Model],
    arch: str,
    turns: list[tuple],
    keep: float,
    anchors: float,
    layers: tuple[int, int],
    update: float,
    rest: str,
    n_ubatch: int,
) -> None:
    path, reference = models(arch, seed=14)
    profile = {
        "ivr.layer": layers[0],
        "ivr.keep": keep,
        "ivr.anchors": anchors,
        "ssr.layer": layers[1],
        "ssr.update": update,
        "ssr.rest": rest,
        "min_visual_tokens": 8,
    }
    with connect(path, profile, PLENTY, n_ubatch=n_ubatch) as client:
        assert_agree(client, reference, conversation(reference, turns), profile)

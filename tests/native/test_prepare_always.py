"""Every question prepares its pictures first, and they stay prepared when it is removed: cheaper, and as exact."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import halfv_cpp
import llama_cpp
import numpy as np
import pytest
from halfv_cpp import library, llama_h

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.dialogue import (
    MODES,
    NEXT_TOKENS,
    PREFIX,
    QUESTION,
    Model,
    connect,
    feed,
    make_prompt,
    tell,
)
from tests.support.pruned import OUTCOME
from tests.support.reference.halfv_torch import Prepare, Segment, Text
from tests.support.tiny_models import DROP, FREEZE
from tests.support.waiting import load, save

A, B = [21, 22, 23, 24, 25], [43, 44, 45]
N_VISUAL, N_COVERED, N_KEPT = 108, 46, 54
TOLERANCE = 1e-4


def begin(client: Client, segments: Sequence[Segment]) -> int:
    """All of it waits; where it ends."""
    for segment in segments:
        tell(client, segment)
    return client.next_pos[0]


def ask(client: Client, start: int, question: list[int], seq: int = 0) -> np.ndarray:
    client.text(question, pos=start, seq=seq)
    return client.logits()


def remove(client: Client, start: int, end: int = -1, seq: int = 0) -> None:
    assert llama_h.llama_memory_seq_rm(client.memory, seq, start, end)


@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grids", [[(9, 12)], [(9, 12), (7, 13)]], ids=["one", "two"])
def test_it_is_what_prepare_does(models: Callable[..., Model], grids: list, mode: str, arch: str) -> None:
    path, reference = models(arch, seed=1)
    *before, question = make_prompt(reference, grids, seed=1)
    expected = reference.run([*before, Prepare(), question], MODES[mode])
    with connect(path, MODES[mode], n_batch=64, n_ubatch=64) as client:
        pruned.set_prepare(client, True)
        logits = feed(client, [*before, Text(question.ids[:3]), Text(question.ids[3:])])
        assert [pruned.kept(client, image) for image in range(len(grids))] == [list(kept) for kept in expected.kept]
        np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=TOLERANCE)
        for token in NEXT_TOKENS:
            np.testing.assert_allclose(client.decode(token), reference.decode(token), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("profile", [FREEZE, DROP, FREEZE | {"ssr.layer": 6}], ids=["freeze", "top", "no stage III"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
def test_second_question_computes_its_own(models: Callable[..., Model], arch: str, profile: dict) -> None:
    path, reference = models(arch, seed=2)
    segments = make_prompt(reference, [(9, 12)], seed=2)[:2]
    spent = {}
    for prepares in (True, False):
        with connect(path, profile) as client:
            pruned.set_prepare(client, prepares)
            start = begin(client, segments)
            wanted, kept = ask(client, start, B), pruned.kept(client)
        with connect(path, profile) as client:
            pruned.set_prepare(client, prepares)
            start = begin(client, segments)
            ask(client, start, A)
            client.decode(300)
            remove(client, start)
            stats = pruned.stats(client)
            assert (stats.outcome, stats.n_kept) == (OUTCOME["pending"], N_COVERED if prepares else 0)
            assert stats.kv_cells[1] == (len(PREFIX) + N_COVERED if prepares else len(PREFIX))
            np.testing.assert_allclose(ask(client, start, B), wanted, rtol=0, atol=TOLERANCE)
            assert pruned.kept(client) == kept
            assert len(kept) == N_KEPT
            spent[prepares] = pruned.stats(client).flops_spent - stats.flops_spent
    assert spent[True] < 0.5 * spent[False]


def grows(client: Client, segments: list[Segment]) -> None:
    """The rest of the picture comes after a question about its beginning."""
    picture = segments[1].embd
    start = begin(client, segments[:1])
    client.image(picture[:80])
    ask(client, start + 80, A)
    remove(client, start + 80)
    client.next_pos[0] = start + 80
    client.image(picture[80:])


def asked(client: Client, segments: list[Segment]) -> int:
    start = begin(client, segments[:2])
    ask(client, start, A)
    return start


def middle_is_removed(client: Client, segments: list[Segment]) -> None:
    remove(client, asked(client, segments))
    remove(client, 1, 3)


def middle_is_removed_first(client: Client, segments: list[Segment]) -> None:
    start = asked(client, segments)
    remove(client, 1, 3)
    remove(client, start)


def it_is_shifted(client: Client, segments: list[Segment]) -> None:
    remove(client, asked(client, segments))
    llama_cpp.llama_memory_seq_add(client.memory, 0, 2, -1, 5)


def other_share_is_kept(client: Client, segments: list[Segment]) -> None:
    start = asked(client, segments)
    pruned.set_keep(client, 0.3)
    remove(client, start)


def other_share_is_kept_late(client: Client, segments: list[Segment]) -> None:
    remove(client, asked(client, segments))
    pruned.set_keep(client, 0.3)


def sequence_has_a_share_of_its_own(client: Client, segments: list[Segment]) -> None:
    remove(client, asked(client, segments))
    assert halfv_cpp.halfv_seq_set_keep(client.ctx, 0, 0.3) == pruned.OK


def it_is_cut(client: Client, segments: list[Segment]) -> None:
    remove(client, asked(client, segments) - 8)


def it_is_saved(client: Client, segments: list[Segment]) -> None:
    start = asked(client, segments)
    state = save(client, 0)
    remove(client, -1)
    assert load(client, state, 0) == len(state)
    remove(client, start)


def it_is_saved_late(client: Client, segments: list[Segment]) -> None:
    remove(client, asked(client, segments))
    state = save(client, 0)
    pruned.set_keep(client, 0.3)
    assert load(client, state, 0) == len(state)


def steer(client: Client) -> None:
    """A control vector, so that what waits goes on without a question."""
    vector = np.random.default_rng(5).standard_normal(7 * client.n_embd).astype(np.float32)
    data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    args = (ctypes.c_void_p(client.ctx), data, ctypes.c_size_t(len(vector)), client.n_embd, 1, 7)
    assert library.open_library("llama").llama_set_adapter_cvec(*args) == 0


def adapters_change(client: Client, segments: list[Segment]) -> None:
    remove(client, asked(client, segments))
    steer(client)


def nothing_is_asked(client: Client, segments: list[Segment]) -> None:
    begin(client, segments[:2])


# what becomes of a picture that stays prepared, and how a fresh context comes to the same point
WAYS = {
    grows: nothing_is_asked,
    it_is_saved: nothing_is_asked,
    it_is_cut: lambda client, segments: remove(client, begin(client, segments[:2]) - 8),
    middle_is_removed: lambda client, segments: (begin(client, segments[:2]), remove(client, 1, 3)),
    middle_is_removed_first: lambda client, segments: (begin(client, segments[:2]), remove(client, 1, 3)),
    it_is_shifted: lambda client, segments: (
        begin(client, segments[:2]),
        llama_cpp.llama_memory_seq_add(client.memory, 0, 2, -1, 5),
    ),
    other_share_is_kept: lambda client, segments: (begin(client, segments[:2]), pruned.set_keep(client, 0.3)),
    other_share_is_kept_late: lambda client, segments: (begin(client, segments[:2]), pruned.set_keep(client, 0.3)),
    sequence_has_a_share_of_its_own: lambda client, segments: (
        begin(client, segments[:2]),
        halfv_cpp.halfv_seq_set_keep(client.ctx, 0, 0.3),
    ),
    adapters_change: lambda client, segments: (begin(client, segments[:2]), steer(client)),
    it_is_saved_late: lambda client, segments: (begin(client, segments[:2]), pruned.set_keep(client, 0.3)),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
def test_it_is_prepared_again_where_it_is_another(models: Callable[..., Model], profile: dict, way: Callable) -> None:
    path, reference = models("llama", seed=3)
    segments = make_prompt(reference, [(9, 12)], seed=3)
    found = []
    for happens in (way, WAYS[way]):
        with connect(path, profile) as client:
            pruned.set_prepare(client, True)
            happens(client, segments)
            start = llama_cpp.llama_memory_seq_pos_max(client.memory, 0) + 1
            found.append((ask(client, start, B), pruned.kept(client), list(pruned.stats(client).kv_cells)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=TOLERANCE)
    assert found[0][1:] == found[1][1:]


def test_a_picture_that_loses_what_was_not_kept_is_another(models: Callable[..., Model]) -> None:
    """And too small to be pruned, here."""
    path, reference = models("llama", seed=3)
    segments = make_prompt(reference, [(9, 12)], seed=3)
    profile, found = FREEZE | {"ivr.keep": 0.1, "min_visual_tokens": N_VISUAL}, []
    for is_asked in (True, False):
        with connect(path, profile) as client:
            pruned.set_prepare(client, True)
            start = (asked if is_asked else begin)(client, segments[:2])
            assert N_VISUAL - 1 not in pruned.kept(client)
            remove(client, start - 1)
            found.append(ask(client, start - 1, B))
            assert pruned.kept(client) == list(range(N_VISUAL - 1))
    np.testing.assert_allclose(*found, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("profile", [FREEZE, FREEZE | {"ssr.update": 0.2}], ids=["freeze", "update"])
def test_what_waits_again_is_what_was_prepared(models: Callable[..., Model], profile: dict) -> None:
    path, reference = models("llama", seed=3)
    segments = make_prompt(reference, [(9, 12)], seed=3)
    found = []
    for is_asked in (True, False):
        with connect(path, profile) as client:
            pruned.set_prepare(client, True)
            if is_asked:
                remove(client, asked(client, segments))
            else:
                begin(client, segments[:2])
                pruned.prepare(client)
            stats = pruned.stats(client)
            found.append((pruned.kept(client), pruned.kept(client, stage=3), list(stats.kv_cells), stats.n_pending))
    assert found[0] == found[1]


def test_rest_of_a_picture_that_went_on_before_adapters_changed(models: Callable[..., Model]) -> None:
    """Its tokens share a position with those that went on, which stay when it is loaded."""
    path, reference = models("qwen2vl", seed=3)
    segments = make_prompt(reference, [(9, 12)], seed=3)
    picture = segments[1]
    with connect(path, FREEZE, n_batch=70) as client:
        pruned.set_prepare(client, True)
        begin(client, segments[:1])
        n = 40
        client.image(picture.embd[:n], picture.pos[:, :n])
        vector = np.ones((5, client.n_embd), np.float32)
        data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert llama_cpp.llama_set_adapter_cvec(client.ctx, data, vector.size, client.n_embd, 1, 5) == 0
        client.image(picture.embd[n:], picture.pos[:, n:])
        cells = list(pruned.stats(client).kv_cells)
        assert cells[1] == len(PREFIX) + n
        state = save(client, 0)
        assert load(client, state, 0) == len(state)
        assert list(pruned.stats(client).kv_cells) == cells


@pytest.mark.parametrize("room", [0, 10_000, 1 << 30])
def test_what_spares_preparing_gives_way(models: Callable[..., Model], room: int) -> None:
    """Without room for it a picture is prepared again, and pruned all the same."""
    path, reference = models("llama", seed=4)
    segments = make_prompt(reference, [(9, 12)], seed=4)[:2]
    needed = 4 * (N_VISUAL * (reference.n_embd + reference.n_head_kv * reference.head_dim) + len(A) * reference.n_embd)
    with connect(path, DROP, needed + room) as client:
        pruned.set_prepare(client, True)
        start = begin(client, segments)
        ask(client, start, A)
        assert pruned.stats(client).outcome == OUTCOME["pruned"]
        limit, used = pruned.undo_bytes(client)
        assert needed <= used <= limit
        remove(client, start)
        assert pruned.stats(client).n_kept == (N_COVERED if room > 10_000 else 0)
        again = ask(client, start, B)
    with connect(path, DROP) as client:
        pruned.set_prepare(client, True)
        np.testing.assert_allclose(again, ask(client, begin(client, segments), B), rtol=0, atol=TOLERANCE)


def test_environment(models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    path, reference = models("llama", seed=5)
    segments = make_prompt(reference, [(9, 12)], seed=5)
    n_kept = {}
    for value in ("", "0", "1"):
        monkeypatch.setenv("HALFV_PREPARE", value)
        with connect(path, DROP) as client:
            start = begin(client, segments[:2])
            ask(client, start, QUESTION)
            remove(client, start)
            n_kept[value] = pruned.stats(client).n_kept
    assert n_kept == {"": 0, "0": 0, "1": N_COVERED}
    monkeypatch.setenv("HALFV_PREPARE", "yes")
    with pytest.raises(RuntimeError, match='HALFV_PREPARE = "yes" is not valid: it must be 0 or 1'):
        connect(path, DROP)

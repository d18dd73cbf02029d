"""A question that is removed leaves no trace: the same tokens give the same logits, whatever was asked before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.dialogue import Model, connect, make_prompt, tell
from tests.support.pruned import OUTCOME, REASON
from tests.support.reference.halfv_torch import Segment
from tests.support.tiny_models import DROP, FREEZE
from tests.support.waiting import load, save

A, B = [21, 22, 23, 24, 25], [43, 44, 45]
N_VISUAL = 108
TOLERANCE = 1e-4  # a picture that stays settled for a question that is gone shows at 1e-1 and more


def begin(client: Client, segments: list[Segment]) -> int:
    """Text and a picture, waiting; where it ends."""
    for segment in segments[:2]:
        tell(client, segment)
    return client.next_pos[0]


def remove(client: Client, start: int, end: int = -1, seq: int = 0) -> None:
    assert llama_h.llama_memory_seq_rm(client.memory, seq, start, end)


def ask(client: Client, start: int, question: list[int], seq: int = 0) -> np.ndarray:
    client.text(question, pos=start, seq=seq)
    return client.logits()


def fresh(path: object, segments: list[Segment], profile: dict, question: list[int]) -> tuple[np.ndarray, list[int]]:
    with connect(path, profile) as client:
        return ask(client, begin(client, segments), question), pruned.kept(client)


@pytest.mark.parametrize("profile", [FREEZE, DROP], ids=["freeze", "top"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
@pytest.mark.parametrize("way", ["removed", "last token", "prepared", "topped up", "saved", "copied"])
def test_removed_question(models: Callable[..., Model], way: str, arch: str, profile: dict) -> None:
    path, reference = models(arch, seed=1)
    segments = make_prompt(reference, [(9, 12)], seed=1)
    wanted, kept = fresh(path, segments, profile, B)
    with connect(path, profile, n_seq_max=2) as client:
        start, seq = begin(client, segments), 0
        if way == "prepared":
            pruned.prepare(client)
        ask(client, start, B[:-1] + A if way == "last token" else A)
        client.decode(300)
        if way == "topped up":
            pruned.topup(client)
            client.text(B)
        if way == "saved":
            state = save(client, 0)
            remove(client, -1)
            assert load(client, state, 0) == len(state)
        if way == "copied":
            seq = 1
            llama_h.llama_memory_seq_cp(client.memory, 0, 1, -1, -1)
        remove(client, start + len(B) - 1 if way == "last token" else start, seq=seq)
        stats = pruned.stats(client, seq)
        assert (stats.outcome, stats.n_kept, stats.n_visual) == (OUTCOME["pending"], 0, N_VISUAL)
        again = ask(client, start + len(B) - 1, B[-1:], seq) if way == "last token" else ask(client, start, B, seq)
        assert pruned.kept(client, seq=seq) == kept
        np.testing.assert_allclose(again, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kv_unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl"])
def test_last_token_left_is_the_question_where_the_next_cannot_be(
    models: Callable[..., Model], arch: str, kv_unified: bool
) -> None:
    """Embeddings of every row are asked for, so what waits goes on alone: as where the removed token never was."""
    path, reference = models(arch, seed=5)
    segments = make_prompt(reference, [(9, 12)], seed=5)
    results = []
    for question in (A, A[:-1]):
        with connect(path, FREEZE, n_seq_max=2, kv_unified=kv_unified) as client:
            start = begin(client, segments)
            if question == A:
                ask(client, start, A)
                remove(client, start + len(A) - 1)
            else:
                client.text(question, pos=start, logits_last=False)
            cells = list(pruned.stats(client).kv_cells)
            llama_h.llama_set_embeddings(client.ctx, True)
            client.batch(B, np.arange(len(B)) + start + len(A) - 1, [0] * len(B), [True] * len(B))
            assert pruned.stats(client).kv_cells[0] == cells[0] + len(B)
            assert pruned.stats(client).outcome == OUTCOME["pruned"]
            results.append((pruned.kept(client), client.logits()))
    assert results[0][0] == results[1][0]
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=TOLERANCE)


def test_question_asked_with_pruning_off_leaves_no_trace(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=6)
    segments = make_prompt(reference, [(9, 12)], seed=6)
    wanted, kept = fresh(path, segments, FREEZE, B)
    with connect(path, FREEZE) as client:
        start = begin(client, segments)
        pruned.set_enabled(client, False)
        ask(client, start, A)
        assert (pruned.stats(client).reason, pruned.stats(client).n_kept) == (REASON["disabled"], N_VISUAL)
        pruned.set_enabled(client, True)
        remove(client, start)
        np.testing.assert_allclose(ask(client, start, B), wanted, rtol=0, atol=TOLERANCE)
        assert pruned.kept(client) == kept


def test_not_undone_where_that_is_not_wanted(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=1)
    segments = make_prompt(reference, [(9, 12)], seed=1)
    wanted, _ = fresh(path, segments, DROP, B)
    with connect(path, DROP) as client:
        pruned.set_undo(client, False)
        start = begin(client, segments)
        ask(client, start, A)
        remove(client, start)
        assert pruned.stats(client).outcome == OUTCOME["pruned"]
        assert np.abs(ask(client, start, B) - wanted).max() > 100 * TOLERANCE


@pytest.mark.parametrize("cut", ["front", "back"])
def test_cut_picture_is_what_is_left_of_it(models: Callable[..., Model], cut: str) -> None:
    path, reference = models("llama", seed=2)
    segments = make_prompt(reference, [(9, 12)], seed=2)
    with connect(path, FREEZE) as client:
        end = begin(client, segments)
        first = end - N_VISUAL
        if cut == "front":
            remove(client, first, first + 8)
            llama_h.llama_memory_seq_add(client.memory, 0, first + 8, -1, -8)
        else:
            remove(client, end - 8)
        ask(client, end - 8, A)
        stats = pruned.stats(client)
        assert (stats.outcome, stats.n_visual, stats.n_kept) == (OUTCOME["pruned"], N_VISUAL - 8, (N_VISUAL - 8) // 2)


def test_budget(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=3)
    segments = make_prompt(reference, [(9, 12)], seed=3)
    token_bytes = 4 * (reference.n_embd + reference.n_head_kv * reference.head_dim)
    with connect(path, FREEZE, N_VISUAL * token_bytes) as client:
        ask(client, begin(client, segments), A)  # the question has no room any more
        stats = pruned.stats(client)
        assert (stats.outcome, stats.reason, stats.n_kept) == (OUTCOME["unpruned"], REASON["budget"], N_VISUAL)
        assert pruned.undo_bytes(client) == (N_VISUAL * token_bytes, 0)
        llama_h.llama_memory_clear(client.memory, True)
        client.next_pos[0] = 0
        pruned.set_undo_bytes(client, (N_VISUAL + len(A)) * token_bytes)
        ask(client, begin(client, segments), A)
        assert pruned.stats(client).outcome == OUTCOME["pruned"]
        assert 0 < pruned.undo_bytes(client)[1] <= pruned.undo_bytes(client)[0]


@pytest.mark.parametrize("kv_unified", [True, False], ids=["unified", "streams"])
def test_copy_takes_the_place_of_what_was_there(models: Callable[..., Model], kv_unified: bool) -> None:
    path, reference = models("llama", seed=4)
    segments = make_prompt(reference, [(9, 12)], seed=4)
    with connect(path, FREEZE, n_seq_max=2, kv_unified=kv_unified) as client:
        client.text(B, logits_last=False, seq=1)
        client.image(segments[1].embd, seq=1)  # waits in the destination
        client.text(B, logits_last=False)
        llama_h.llama_memory_seq_cp(client.memory, 0, 1, -1, -1)
        assert pruned.stats(client, 1).outcome == OUTCOME["none"]
        client.text(A, seq=1, pos=len(B))
        assert list(pruned.stats(client, 1).kv_cells) == [len(A) + len(B)] * 3


def bytes_of(reference: object, n_visual: int, n_text: int) -> int:
    """What undoing takes."""
    return 4 * (n_visual * (reference.n_embd + reference.n_head_kv * reference.head_dim) + n_text * reference.n_embd)


@pytest.mark.parametrize("n_short", [0, 1])
def test_prepared_picture_and_a_question_that_is_too_long(models: Callable[..., Model], n_short: int) -> None:
    """It is not pruned, as if it had not been prepared; a question that just fits leaves it as it was prepared."""
    path, reference = models("llama", seed=5)
    segments = make_prompt(reference, [(9, 12)], seed=5)
    limit = bytes_of(reference, N_VISUAL, len(A) - n_short)
    found = []
    for prepares in (True, False):
        with connect(path, FREEZE, limit) as client:
            start = begin(client, segments)
            if prepares:
                pruned.prepare(client)
            client.text(A[:2], logits_last=False)
            client.text(A[2:])
            stats = pruned.stats(client)
            assert (stats.outcome, stats.reason) == (
                (OUTCOME["unpruned"], REASON["budget"]) if n_short else (OUTCOME["pruned"], REASON["none"])
            )
            assert pruned.undo_bytes(client)[1] == (0 if n_short else limit)
            found.append(client.logits())
            remove(client, start)
            assert np.abs(ask(client, start, B) - fresh(path, segments, FREEZE, B)[0]).max() > TOLERANCE or not n_short
    if n_short:
        np.testing.assert_allclose(*found, rtol=0, atol=TOLERANCE)


def test_second_question_without_room_brings_nothing_back(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=6)
    segments = make_prompt(reference, [(9, 12)], seed=6)
    for room in (0, 1):
        with connect(path, DROP, bytes_of(reference, N_VISUAL, len(A) + len(B) - 1 + room)) as client:
            ask(client, begin(client, segments), A)
            n_kept = pruned.stats(client).n_kept
            assert pruned.topup(client) == pruned.OK
            client.text(B)
            limit, used = pruned.undo_bytes(client)
            assert used <= limit
            assert (pruned.stats(client).n_kept > n_kept) == room


def test_budget_of_sequences_that_are_asked_in_one_batch(models: Callable[..., Model]) -> None:
    path, reference = models("llama", seed=7)
    segments = make_prompt(reference, [(9, 12)], seed=7)
    with connect(path, DROP, bytes_of(reference, N_VISUAL, 1) * 3 // 2, n_seq_max=2) as client:
        for seq in (0, 1):
            client.text(segments[0].ids, logits_last=False, seq=seq)
            client.image(segments[1].embd, seq=seq)
        client.batch([21, 21], np.array(client.next_pos), [0, 1], [True, True])
        limit, used = pruned.undo_bytes(client)
        assert 0 < used <= limit
        outcomes = [pruned.stats(client, seq).outcome for seq in (0, 1)]
        assert sorted(outcomes) == sorted([OUTCOME["pruned"], OUTCOME["unpruned"]])


def test_state_that_takes_more_than_there_is_room_for(models: Callable[..., Model]) -> None:
    """It is refused, as it could not be undone; where nothing is to be undone, only what top-up needs is left out."""
    path, reference = models("llama", seed=8)
    segments = make_prompt(reference, [(9, 12)], seed=8)
    with connect(path, FREEZE) as client:
        ask(client, begin(client, segments), A)
        end, state, logits = client.next_pos[0], save(client, 0), client.decode(300)
    with connect(path, FREEZE, bytes_of(reference, N_VISUAL, 0)) as client:
        assert load(client, state, 0) == 0
        assert pruned.undo_bytes(client)[1] == 0
        pruned.set_undo(client, False)
        assert load(client, state, 0) == len(state)
        assert pruned.undo_bytes(client)[1] == 0
        client.next_pos[0] = end
        np.testing.assert_allclose(client.decode(300), logits, rtol=0, atol=TOLERANCE)

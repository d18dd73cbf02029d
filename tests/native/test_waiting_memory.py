"""Memory operations while a picture waits, and states that are saved and loaded."""

from __future__ import annotations

import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import LOG, Client, log_text
from tests.support import pruned
from tests.support.pruned import OUTCOME
from tests.support.reference.halfv_torch import Text
from tests.support.tiny_models import FREEZE
from tests.support.waiting import N_VISUAL, OTHER, PREFIX, QUESTION, answer, close, dense, load, save, show


def test_seq_rm_of_the_waiting_picture(model):
    path = model()
    with Client(path) as client:
        show(client)
        assert llama_h.llama_memory_seq_rm(client.memory, 0, len(PREFIX), -1)
        assert pruned.stats(client).n_pending == 0
        client.text(OTHER, pos=len(PREFIX))
        assert close(client.logits(), dense(path, Text(PREFIX + OTHER)))


def test_seq_rm_of_text_after_the_picture(model):
    path = model()
    with Client(path) as client:
        image = show(client)
        start = client.next_pos[0]
        client.text(OTHER, logits_last=False)
        assert llama_h.llama_memory_seq_rm(client.memory, 0, start, -1)
        client.text(QUESTION, pos=start)
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION)))


def test_last_text_that_is_left_is_the_question(model):
    """Where what waits goes on without one: embeddings of every row are asked for."""
    results = []
    for text in (QUESTION, QUESTION[:-1]):
        with Client(model(profile=FREEZE | {"ivr.anchors": 1.0})) as client:
            show(client)
            client.text(text, logits_last=False)
            if text == QUESTION:
                client.next_pos[0] -= 1
                assert llama_h.llama_memory_seq_rm(client.memory, 0, client.next_pos[0], -1)
            llama_h.llama_set_embeddings(client.ctx, True)
            client.batch(OTHER, np.arange(len(OTHER)) + client.next_pos[0], [0] * len(OTHER), [True] * len(OTHER))
            results.append((pruned.kept(client, 0), client.logits()))
    assert results[0][0] == results[1][0]
    assert close(results[0][1], results[1][1])


@pytest.mark.parametrize("kv_unified", [True, False], ids=["unified", "streams"])
def test_seq_cp_of_a_waiting_picture(model, kv_unified):
    path = model()
    with Client(path, n_seq_max=2, kv_unified=kv_unified) as client:
        image = show(client)
        llama_h.llama_memory_seq_cp(client.memory, 0, 1, -1, -1)
        client.next_pos[1] = client.next_pos[0]
        for seq, question in ((0, QUESTION), (1, OTHER)):
            client.text(question, seq=seq)
            assert close(client.logits(), answer(path, Text(PREFIX), image, Text(question)))


def test_seq_keep_drops_what_others_wait_for(model):
    path = model()
    with Client(path, n_seq_max=2, kv_unified=True) as client:
        show(client, seq=0)
        image = show(client, seed=1, seq=1)
        llama_h.llama_memory_seq_keep(client.memory, 1)
        assert pruned.stats(client, 0).n_pending == 0
        client.text(QUESTION, seq=1)
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION)))


def test_seq_add_moves_waiting_tokens(model):
    path = model()
    with Client(path) as client:
        image = show(client)
        llama_h.llama_memory_seq_add(client.memory, 0, 0, -1, 7)
        client.text(QUESTION, pos=client.next_pos[0] + 7)
        # RoPE is relative: everything moved by the same amount gives the same answer
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION)))


def test_context_shift_while_waiting(model):
    path = model()
    with Client(path) as client:
        show(client)
        assert llama_h.llama_memory_seq_rm(client.memory, 0, 0, 2)
        llama_h.llama_memory_seq_add(client.memory, 0, 2, -1, -2)
        client.text(QUESTION, pos=client.next_pos[0] - 2)
        stats = pruned.stats(client)
        assert (stats.outcome, stats.n_kept) == (OUTCOME["pruned"], N_VISUAL // 2)
        n_text = len(PREFIX) - 2 + len(QUESTION)
        assert list(stats.kv_cells) == [n_text + N_VISUAL, n_text + N_VISUAL // 2, n_text + N_VISUAL // 2]


def test_seq_div_while_waiting(model):
    with Client(model()) as client:
        show(client)
        llama_h.llama_memory_seq_div(client.memory, 0, 0, -1, 2)
        client.text(QUESTION, pos=(client.next_pos[0] - 1) // 2 + 1)
        assert pruned.stats(client).outcome == OUTCOME["pruned"]
        assert np.isfinite(client.logits()).all()


def test_clear_forgets_the_picture(model):
    path = model()
    with Client(path) as client:
        show(client)
        llama_h.llama_memory_clear(client.memory, True)
        assert pruned.stats(client).outcome == OUTCOME["none"]
        client.text(OTHER, pos=0)
        assert close(client.logits(), dense(path, Text(OTHER)))


# --- state save and load ---


@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "sequence"])
@pytest.mark.parametrize("asked", [True, False], ids=["settled", "waiting"])
def test_state_round_trip(model, arch, whole, asked):
    path = model(arch)
    seq = None if whole else 0
    with Client(path) as client, Client(path) as other:
        show(client)
        if asked:
            client.text(QUESTION)
        state = save(client, seq)
        assert load(other, state, seq) == len(state)
        other.next_pos[0] = client.next_pos[0]
        assert pruned.stats(other).outcome == (OUTCOME["pruned"] if asked else OUTCOME["pending"])
        for c in (client, other):
            c.text(OTHER)
        assert (client.logits() == other.logits()).all()
        assert pruned.kept(client, 0) == pruned.kept(other, 0)


def test_state_into_another_sequence(model):
    path = model()
    with Client(path, n_seq_max=2) as client:
        image = show(client)
        assert load(client, save(client, 0), 1) > 0
        client.next_pos[1] = client.next_pos[0]
        client.text(QUESTION, seq=1)
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION)))


def test_broken_states_are_refused(model):
    path = model()
    stock = model(profile=None)
    with Client(path) as client, Client(stock) as unpruned:
        show(client)
        state = save(client, 0)
        unpruned.text(PREFIX)
        assert load(client, save(unpruned, 0), 0) == 0  # made without stages

        rng = np.random.default_rng(0)
        for length in [1, 30, len(state) // 2, len(state) - 1]:
            assert load(client, state[:length], 0) == 0
        for _ in range(200):
            broken = bytearray(state)
            at = int(rng.integers(len(broken)))
            broken[at] ^= int(rng.integers(1, 256))
            load(client, bytes(broken), 0)  # any answer, but the process lives
        llama_h.llama_memory_clear(client.memory, True)
        client.next_pos[0] = 0
        image = show(client)
        client.text(QUESTION)
        assert close(client.logits(), answer(path, Text(PREFIX), image, Text(QUESTION)))


@pytest.mark.parametrize("position", [-1, -5, -(2**31)])
@pytest.mark.parametrize("seq", [0, None], ids=["sequence", "whole"])
def test_saved_cells_have_positions(model, position, seq):
    """llama.cpp itself would take them for empty, or stop at an assertion in a debug build."""
    with Client(model()) as client:
        show(client)
        state = save(client, seq)
        cells = np.array([2, 1, 0, 3, 1, 0], np.int32).tobytes()  # position, number of sequences, sequence of two
        assert cells in state
        LOG.clear()
        assert load(client, state.replace(cells, np.int32(position).tobytes() + cells[4:]), seq) == 0
        assert f"position {position}" in log_text()
        assert list(pruned.stats(client).kv_cells) == [0, 0, 0]


def test_long_name_in_a_saved_state(model):
    with Client(model()) as client:
        show(client)
        state = save(client, None)
        assert state.startswith(np.uint32(5).tobytes() + b"llama")
        LOG.clear()
        assert load(client, np.uint32(2**31).tobytes() + state[4:], None) == 0
        assert "a saved name of 2147483648 bytes" in log_text()

"""Models with recurrent layers: what a state that cannot be taken apart refuses, and what still works."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client, DecodeError, log_text
from tests.support import architectures, pretend_device, pruned
from tests.support.architectures import COLS, NEXT_TOKENS, PREFIX, QUESTION, ROWS, TOP, WHOLE
from tests.support.tiny_models import grid_positions, tiny_image

OTHER_QUESTION = list(range(40, 49))
PARTIAL_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


@pytest.fixture(scope="module")
def path(build_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = build_dir / "bin" / "save-archs"
    assert program.is_file(), f"{program} is not built: run `make test`"
    return architectures.save(program, "qwen35", tmp_path_factory.mktemp("qwen35"))[0]


def connect(path: Path, profile: dict = TOP, **options: object) -> Client:
    return Client(path, n_ctx=512, on_model=lambda model: pruned.set_profile(model, profile), **options)


def show(client: Client, seq: int = 0, seed: int = 0) -> None:
    client.text(PREFIX, logits_last=False, seq=seq)
    client.image(
        tiny_image(ROWS * COLS, client.n_embd_inp, seed=seed), grid_positions(client.next_pos[seq], ROWS, COLS), seq=seq
    )


def ask(client: Client, question: list[int] = QUESTION, seq: int = 0) -> np.ndarray:
    client.text(question, seq=seq)
    return np.stack([client.logits(), *(client.decode(token, seq=seq) for token in NEXT_TOKENS)])


def answer(path: Path, question: list[int] = QUESTION, seed: int = 0) -> np.ndarray:
    with connect(path) as client:
        show(client, seed=seed)
        return ask(client, question)


def last_of(client: Client, seq: int = 0) -> int:
    return llama_h.llama_memory_seq_pos_max(client.memory, seq)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ssr.rest": "frozen"}, 'halfv.ssr.rest = "frozen" is not valid: layer 4 is recurrent'),
        ({"ivr.layer": 1}, "halfv.ivr.layer = 1 is not valid: no layer before it has attention"),
        (
            {"ssr.layer": 3},
            "halfv.ssr.layer = 3 is not valid: no layer from halfv.ivr.layer = 2 up to it has attention",
        ),
    ],
)
def test_profiles_that_do_not_fit(changes: dict, sentence: str, path: Path) -> None:
    with pytest.raises(halfv_cpp.CallError) as error:
        connect(path, TOP | changes)
    assert sentence in str(error.value)


def test_a_profile_of_the_environment_that_does_not_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = {"version": 1, "ivr": {"layer": 2, "keep": 0.5, "anchors": 0.2}}
    profile["ssr"] = {"layer": 4, "update": 0.1, "rest": "frozen"}
    monkeypatch.setenv("HALFV_PROFILE", json.dumps(profile))
    with pytest.raises(RuntimeError, match="cannot make a context"):
        Client(path, n_ctx=256)
    assert 'halfv.ssr.rest = "frozen" is not valid: layer 4 is recurrent' in log_text()


def test_a_profile_that_prunes_nothing_fits(path: Path) -> None:
    with Client(path, n_ctx=512) as client:
        show(client)
        stock = ask(client)
    with connect(path, {}) as client:
        show(client)
        assert ask(client).tobytes() == stock.tobytes()


def test_what_feeds_tokens_out_of_order_is_refused(path: Path) -> None:
    with connect(path) as client:
        show(client)
        calls: list[Callable[[], object]] = [
            lambda: pruned.prepare(client),
            lambda: pruned.topup(client),
            lambda: pruned.set_undo(client, True),
        ]
        for call in calls:
            with pytest.raises(halfv_cpp.CallError, match="recurrent layers"):
                call()
        pruned.set_undo(client, False)
        assert ask(client).tobytes() == answer(path).tobytes()
        assert pruned.stats(client).n_stored == 0


@pytest.mark.parametrize("settled", [False, True])
def test_the_end_of_a_sequence_stays(path: Path, settled: bool) -> None:
    with connect(path) as client:
        show(client)
        if settled:
            client.text(QUESTION)
        last = last_of(client)
        assert not llama_h.llama_memory_seq_rm(client.memory, 0, last, -1)
        assert not llama_h.llama_memory_seq_rm(client.memory, -1, 2, -1)
        assert last_of(client) == last
        if not settled:
            client.text(QUESTION)
        logits = np.stack([client.logits(), *(client.decode(token) for token in NEXT_TOKENS)])
        assert logits.tobytes() == answer(path).tobytes()

        assert llama_h.llama_memory_seq_rm(client.memory, 0, -1, -1)
        assert last_of(client) == -1
        client.next_pos[0] = 0
        show(client)
        np.testing.assert_allclose(ask(client), answer(path), rtol=0, atol=1e-5)


@contextmanager
def aborted(client: Client, after: int) -> Iterator[None]:
    calls = 0

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
    def abort(_data: object) -> bool:
        nonlocal calls
        calls += 1
        return calls > after

    llama_h.llama_set_abort_callback(client.ctx, abort, None)
    with pytest.raises(DecodeError) as failure:
        yield
    assert failure.value.code == 2
    llama_h.llama_set_abort_callback(client.ctx, type(abort)(), None)


@pytest.mark.parametrize("after", [0, 30, 150, 250])
def test_what_an_aborted_batch_did_to_states_is_taken_back(path: Path, after: int) -> None:
    with connect(path) as client:
        client.text(PREFIX, logits_last=False)
        start = client.next_pos[0]
        if pretend_device.asked_for():  # which asks once for each graph
            after = min(after, 2)
        image = tiny_image(ROWS * COLS, client.n_embd_inp)
        with aborted(client, 0 if pretend_device.asked_for() else min(after, 30)):
            client.image(image, grid_positions(start, ROWS, COLS))
        client.image(image, grid_positions(start, ROWS, COLS))
        place = client.next_pos[0]
        with aborted(client, after):
            client.text(QUESTION)
        assert pruned.stats(client).n_pending == ROWS * COLS
        client.next_pos[0] = place
        np.testing.assert_allclose(ask(client), answer(path), rtol=0, atol=1e-5)


def test_a_refused_batch_leaves_states_alone(path: Path) -> None:
    with connect(path, WHOLE) as client:
        show(client)
        place = client.next_pos[0]
        with pytest.raises(DecodeError) as failure:
            client.text([5] * 500)
        assert failure.value.code == 1
        client.next_pos[0] = place
        logits = ask(client)
    with connect(path, WHOLE) as client:
        show(client)
        np.testing.assert_allclose(ask(client), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_unified", [False, True])
def test_two_sequences_at_once(path: Path, kv_unified: bool) -> None:
    with connect(path, n_seq_max=2, kv_unified=kv_unified) as client:
        for seq in (0, 1):
            show(client, seq, seed=seq)
        places = client.next_pos
        n = len(QUESTION)
        rows = [token for token in QUESTION for _ in (0, 1)]
        positions = np.array([places[seq] + i for i in range(n) for seq in (0, 1)])
        client.batch(rows, positions, [0, 1] * n, [False] * (2 * n - 2) + [True] * 2)
        for seq in (0, 1):
            logits = client.logits(2 * n - 2 + seq)
            np.testing.assert_allclose(logits, answer(path, seed=seq)[0], rtol=0, atol=1e-5)
        # and on, in one graph
        client.batch([NEXT_TOKENS[0]] * 2, np.array(places) + n, [0, 1], [True] * 2)
        for seq in (0, 1):
            np.testing.assert_allclose(client.logits(seq), answer(path, seed=seq)[1], rtol=0, atol=1e-5)


def test_a_picture_that_waits_is_copied(path: Path) -> None:
    with connect(path, n_seq_max=2, kv_unified=True) as client:
        show(client)
        llama_h.llama_memory_seq_cp(client.memory, 0, 1, 0, 3)
        assert "recurrent layers copy whole sequences" in log_text()
        assert last_of(client, 1) == -1
        llama_h.llama_memory_seq_cp(client.memory, 0, 1, -1, -1)
        client.next_pos[1] = client.next_pos[0]
        np.testing.assert_allclose(ask(client, OTHER_QUESTION, seq=1), answer(path, OTHER_QUESTION), rtol=0, atol=1e-5)
        np.testing.assert_allclose(ask(client), answer(path), rtol=0, atol=1e-5)


def saved(client: Client, flags: int) -> ctypes.Array:
    size = llama_h.llama_state_seq_get_size_ext(client.ctx, 0, flags)
    data = (ctypes.c_uint8 * size)()
    assert llama_h.llama_state_seq_get_data_ext(client.ctx, data, size, 0, flags) == size
    return data


def test_back_to_a_checkpoint_as_llama_server_goes(path: Path) -> None:
    with connect(path) as client:
        show(client)
        place, last = client.next_pos[0], last_of(client)
        checkpoint = saved(client, PARTIAL_ONLY)
        assert len(checkpoint) < len(saved(client, 0))
        ask(client, OTHER_QUESTION)
        assert pruned.stats(client).n_pending == 0

        size = len(checkpoint)
        assert llama_h.llama_state_seq_set_data_ext(client.ctx, checkpoint, size, 0, PARTIAL_ONLY) == size
        assert llama_h.llama_memory_seq_rm(client.memory, 0, last + 1, -1)
        assert last_of(client) == last
        assert pruned.stats(client).n_pending == ROWS * COLS
        client.next_pos[0] = place
        np.testing.assert_allclose(ask(client), answer(path), rtol=0, atol=1e-5)


def test_a_broken_state_is_refused(path: Path) -> None:
    with connect(path) as client:
        show(client)
        data = saved(client, PARTIAL_ONLY)
        places = [i for i in range(40, 80, 4)] + [len(data) - 1]
        for place in places:
            broken = type(data).from_buffer_copy(data)
            broken[place] ^= 0x55
            llama_h.llama_state_seq_set_data_ext(
                client.ctx, broken, len(broken), 0, PARTIAL_ONLY
            )  # refused, or harmless
        assert llama_h.llama_state_seq_set_data_ext(client.ctx, data, len(data) // 2, 0, PARTIAL_ONLY) == 0
        assert last_of(client) == -1
        client.next_pos[0] = 0
        show(client)
        np.testing.assert_allclose(ask(client), answer(path), rtol=0, atol=1e-5)

"""Adapters and control vectors that change while a picture waits: what waits keeps those it was decoded under."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import library, llama_h

from halfv_edge.testing.client import LOG, Client, DecodeError, log_text
from tests.support import pruned
from tests.support.pruned import OUTCOME
from tests.support.tiny_models import DROP, make_tiny, make_tiny_lora

WHOLE = DROP | {"min_visual_tokens": 1000}
N_LAYER = 6
N_VISUAL = 64
PREFIX = [11, 12, 13, 14]
BEFORE = [31, 32, 33, 34, 35, 36]
AFTER = [21, 22]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "whole": make_tiny(folder / "whole.gguf", "llama", profile=WHOLE),
        "pruned": make_tiny(folder / "pruned.gguf", "llama", profile=DROP),
        "lora": make_tiny_lora(folder / "lora.gguf", "llama"),
    }


class Adapters:
    """The switches of one client."""

    def __init__(self, client: Client, lora: Path):
        self.client = client
        self.lora = llama_h.llama_adapter_lora_init(client.model, str(lora).encode())
        rng = np.random.default_rng(5)
        self.vector = 0.3 * rng.standard_normal((N_LAYER - 1) * client.n_embd).astype(np.float32)

    def set_lora(self, *scales: float) -> None:
        n = len(scales)
        adapters = (ctypes.c_void_p * max(n, 1))(self.lora)
        values = (ctypes.c_float * max(n, 1))(*scales)
        assert llama_h.llama_set_adapters_lora(self.client.ctx, adapters, n, values) == 0

    def set_vector(self, factor: float | None) -> None:
        data, size = None, 0
        if factor is not None:
            vector = np.ascontiguousarray(self.vector * factor, np.float32)
            data, size = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), len(vector)
        args = (ctypes.c_void_p(self.client.ctx), data, ctypes.c_size_t(size), self.client.n_embd, 1, N_LAYER - 1)
        assert library.open_library("llama").llama_set_adapter_cvec(*args) == 0


def show(client: Client) -> None:
    client.text(PREFIX, logits_last=False)
    embd = np.random.default_rng(0).standard_normal((N_VISUAL, client.n_embd_inp)).astype(np.float32)
    client.image(embd)
    client.text(BEFORE, logits_last=False)


Switch = Callable[[Adapters], None]
NOTHING: Switch = lambda adapters: None  # noqa: E731

CHANGES: dict[str, tuple[Switch, Switch]] = {
    "adapter on": (NOTHING, lambda a: a.set_lora(1.0)),
    "adapter off": (lambda a: a.set_lora(1.0), lambda a: a.set_lora()),
    "scale 0": (lambda a: a.set_lora(1.0), lambda a: a.set_lora(0.0)),
    "scale": (lambda a: a.set_lora(1.0), lambda a: a.set_lora(0.5)),
    "vector on": (NOTHING, lambda a: a.set_vector(1.0)),
    "vector off": (lambda a: a.set_vector(1.0), lambda a: a.set_vector(None)),
    "another vector": (lambda a: a.set_vector(1.0), lambda a: a.set_vector(-1.0)),
}
SAME: dict[str, tuple[Switch, Switch]] = {
    "no adapter": (NOTHING, lambda a: a.set_lora()),
    "scale 0": (NOTHING, lambda a: a.set_lora(0.0)),
    "the adapter again": (lambda a: a.set_lora(1.0), lambda a: a.set_lora(1.0)),
    "no vector": (NOTHING, lambda a: a.set_vector(None)),
    "no vector, twice": (lambda a: (a.set_vector(1.0), a.set_vector(None)), lambda a: a.set_vector(None)),
    "the vector again": (lambda a: a.set_vector(1.0), lambda a: a.set_vector(1.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_pruned_is_as_stock(files, monkeypatch, change):
    first, second = CHANGES[change]

    def logits(switch: Switch = second) -> np.ndarray:
        with Client(files["whole"]) as client:
            adapters = Adapters(client, files["lora"])
            first(adapters)
            show(client)
            switch(adapters)
            client.text(AFTER)
            return client.logits()

    ours = logits()
    monkeypatch.setenv("HALFV", "off")
    stock = logits()
    np.testing.assert_allclose(ours, stock, atol=1e-4)
    assert np.abs(stock - logits(NOTHING)).max() > 1e-2  # the switch is felt


@pytest.mark.parametrize("change", CHANGES)
def test_the_last_token_before_the_change_is_the_question(files, change):
    first, second = CHANGES[change]
    with Client(files["pruned"]) as client:
        adapters = Adapters(client, files["lora"])
        first(adapters)
        show(client)
        assert pruned.stats(client).outcome == OUTCOME["pending"]
        second(adapters)
        stats = pruned.stats(client)
        assert (stats.outcome, stats.n_pending, stats.n_kept) == (OUTCOME["pruned"], 0, N_VISUAL // 2)
        kept = pruned.kept(client)
    with Client(files["pruned"]) as client:
        first(Adapters(client, files["lora"]))
        client.text(PREFIX, logits_last=False)
        client.image(np.random.default_rng(0).standard_normal((N_VISUAL, client.n_embd_inp)).astype(np.float32))
        client.text(BEFORE)
        assert pruned.kept(client) == kept


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rest", ["another question", "the same text, nothing more", "all of it"])
def test_what_is_left_is_as_fresh_when_adapters_come_back(files, change, rest):
    """Adapters that some text switches on do so: picture and question without them, the answer with them."""
    first, second = CHANGES[change]
    other = [41, 42, 43]

    def begin(client: Client) -> tuple[Adapters, int]:
        adapters = Adapters(client, files["lora"])
        first(adapters)
        show(client)
        return adapters, client.next_pos[0]

    def back(adapters: Adapters) -> None:
        adapters.set_lora()
        adapters.set_vector(None)
        first(adapters)

    def go_on(client: Client, adapters: Adapters, start: int) -> tuple[np.ndarray, list[int]]:
        if rest == "all of it":  # asked at once under the other adapters
            client.text(AFTER, pos=start)
        elif rest == "another question":
            back(adapters)
            client.text(other, logits_last=False, pos=start)
            second(adapters)
            client.text(AFTER)
        else:
            back(adapters)
            client.text(other, pos=start)
        return client.logits(), pruned.kept(client)

    with Client(files["pruned"]) as client:
        adapters, start = begin(client)
        if rest == "all of it":
            second(adapters)
        logits, kept = go_on(client, adapters, start)
    with Client(files["pruned"]) as client:
        adapters, start = begin(client)
        if rest == "another question":
            client.text([51, 52], logits_last=False)
        second(adapters)
        client.text([61, 62, 63])
        assert llama_h.llama_memory_seq_rm(client.memory, 0, start, -1)
        again, kept_again = go_on(client, adapters, start)
    assert kept_again == kept
    np.testing.assert_allclose(again, logits, rtol=0, atol=1e-4)


def test_question_from_before_the_change_is_not_undone_under_others(files):
    """Its picture would go on with adapters that it was not decoded under."""
    with Client(files["pruned"]) as client:
        adapters = Adapters(client, files["lora"])
        show(client)
        start = client.next_pos[0]
        client.text(AFTER)
        kept = pruned.kept(client)
        adapters.set_lora(1.0)
        assert llama_h.llama_memory_seq_rm(client.memory, 0, start, -1)
        assert pruned.stats(client).outcome == OUTCOME["pruned"]
        client.text(AFTER, pos=start)
        assert pruned.kept(client) == kept


@pytest.mark.parametrize("change", SAME)
def test_a_change_to_the_same_settles_nothing(files, change):
    first, second = SAME[change]
    with Client(files["pruned"]) as client:
        adapters = Adapters(client, files["lora"])
        first(adapters)
        show(client)
        second(adapters)
        assert pruned.stats(client).n_pending == N_VISUAL + len(BEFORE)


def test_no_room_to_settle(files):
    """The change takes place and the log says what that means; the picture still waits."""
    with Client(files["whole"], n_ctx=1024, on_model=lambda m: pruned.set_stage_cells(m, 0, 256, 256)) as client:
        client.image(np.zeros((300, client.n_embd_inp), np.float32))
        LOG.clear()
        Adapters(client, files["lora"]).set_lora(1.0)
        assert "adapters" in log_text()
        assert pruned.stats(client).n_pending == 300
        with pytest.raises(DecodeError):
            client.text(AFTER)

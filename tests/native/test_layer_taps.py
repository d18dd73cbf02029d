"""Layer inputs that a speculative decoder reads (EAGLE-3): a profile does not disturb them, nor they it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import library

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.pruned import OUTCOME, REASON
from tests.support.tiny_models import DROP, make_tiny

TAPPED = (1, 3, 5)  # a layer in each stage
N_VISUAL = 80
PREFIX = [11, 12, 13, 14]
QUESTION = [21, 22, 23, 24, 25]


def symbol(name: str, arguments: str):
    """llama-ext.h is C++: its names are mangled."""
    return library.open_library("llama")[f"_Z{len(name)}{name}{arguments}"]


def set_taps(client: Client, on: bool) -> None:
    for layer in TAPPED:
        symbol("llama_set_embeddings_layer_inp", "P13llama_contextjb")(
            ctypes.c_void_p(client.ctx), ctypes.c_uint32(layer), ctypes.c_bool(on)
        )


def taps(client: Client, n_tokens: int) -> np.ndarray:
    get = symbol("llama_get_embeddings_layer_inp", "P13llama_contextj")
    get.restype = ctypes.POINTER(ctypes.c_float)
    pointers = [get(ctypes.c_void_p(client.ctx), ctypes.c_uint32(layer)) for layer in TAPPED]
    return np.stack([np.ctypeslib.as_array(p, shape=(n_tokens, client.n_embd)).copy() for p in pointers])


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "model.gguf", "llama", profile=DROP)


def picture(client: Client) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N_VISUAL, client.n_embd_inp)).astype(np.float32)


def talk(path: Path, with_picture: bool) -> list[np.ndarray]:
    with Client(path) as client:
        set_taps(client, True)
        client.text(PREFIX, logits_last=False)
        seen = [taps(client, len(PREFIX))]
        if with_picture:
            client.image(picture(client))
            seen.append(taps(client, N_VISUAL))
        client.text(QUESTION)
        seen += [taps(client, len(QUESTION)), client.logits()]
        if with_picture and os.environ.get("HALFV") != "off":
            stats = pruned.stats(client)
            assert (stats.outcome, stats.reason) == (OUTCOME["unpruned"], REASON["outputs"])
        return seen


@pytest.mark.parametrize("with_picture", [False, True], ids=["text", "picture"])
def test_a_profile_does_not_change_them(path, monkeypatch, with_picture):
    ours = talk(path, with_picture)
    monkeypatch.setenv("HALFV", "off")
    for actual, expected in zip(ours, talk(path, with_picture), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("text_follows", [True, False])
def test_a_waiting_picture_is_settled_when_they_are_asked_for(text_follows, path):
    """By the last text that waits; one that no text follows goes on whole."""
    with Client(path) as client:
        client.text(PREFIX, logits_last=False)
        client.image(picture(client))
        if text_follows:
            client.text(QUESTION, logits_last=False)
        assert pruned.stats(client).outcome == OUTCOME["pending"]
        set_taps(client, True)
        client.text(QUESTION)
        stats = pruned.stats(client)
        expected = (OUTCOME["pruned"], 0, N_VISUAL // 2) if text_follows else (OUTCOME["unpruned"], 0, N_VISUAL)
        assert (stats.outcome, stats.n_pending, stats.n_kept) == expected
        assert np.isfinite(taps(client, len(QUESTION))).all()
        assert np.isfinite(client.logits()).all()


def test_taps_that_are_switched_off_leave_pruning_as_it_was(path):
    def answer(tapped: bool) -> np.ndarray:
        with Client(path) as client:
            if tapped:
                set_taps(client, True)
                client.text(PREFIX, logits_last=False)
                set_taps(client, False)
            else:
                client.text(PREFIX, logits_last=False)
            client.image(picture(client))
            client.text(QUESTION)
            assert pruned.stats(client).outcome == OUTCOME["pruned"]
            return client.logits()

    np.testing.assert_allclose(answer(True), answer(False), atol=1e-5)

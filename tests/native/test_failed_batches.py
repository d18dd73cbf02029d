"""A batch that fails or is refused leaves everything as it was: cells, what waits, and what was counted."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client, DecodeError
from tests.support import pruned
from tests.support.pruned import OUTCOME, REASON
from tests.support.tiny_models import DROP, make_tiny

N_VISUAL = 64
PREFIX = [11, 12, 13, 14]
QUESTION = [21, 22, 23, 24, 25]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "model.gguf", "llama", profile=DROP)


def picture(client: Client, n: int = N_VISUAL, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, client.n_embd_inp)).astype(np.float32)


def visual_batch(client: Client, n: int, output: bool, seed: int = 1) -> None:
    start = client.next_pos[0]
    client.batch(picture(client, n, seed), np.arange(start, start + n), [0] * n, [False] * (n - 1) + [output])


def show(client: Client) -> None:
    client.text(PREFIX, logits_last=False)
    client.image(picture(client))


def everything(client: Client) -> bytes:
    return bytes(pruned.stats(client))


@contextmanager
def refused(client: Client, code: int) -> Iterator[None]:
    before = everything(client)
    with pytest.raises(DecodeError) as failure:
        yield
    assert failure.value.code == code
    assert everything(client) == before


@contextmanager
def aborted(client: Client, after: int) -> Iterator[None]:
    calls = 0

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
    def abort(_data) -> bool:
        nonlocal calls
        calls += 1
        return calls > after

    llama_h.llama_set_abort_callback(client.ctx, abort, None)
    with refused(client, 2):
        yield
    llama_h.llama_set_abort_callback(client.ctx, type(abort)(), None)


def answer(path: Path, **kwargs) -> np.ndarray:
    with Client(path, **kwargs) as client:
        show(client)
        client.text(QUESTION)
        return client.logits()


def test_a_refused_picture_that_does_not_fit(path):
    """The picture before it still waits, and is not settled without its question."""
    with Client(path, n_ctx=256) as client:
        show(client)
        with refused(client, 1):
            visual_batch(client, 200, output=True)
        assert pruned.stats(client).outcome == OUTCOME["pending"]
        client.text(QUESTION)
        np.testing.assert_allclose(client.logits(), answer(path, n_ctx=256), atol=1e-5)


def test_a_picture_is_counted_once_when_it_is_tried_again_in_halves(path):
    with Client(path, n_ctx=256) as client:
        client.text(PREFIX, logits_last=False)
        with refused(client, 1):
            visual_batch(client, 254, output=True)
        for _ in range(2):
            visual_batch(client, 100, output=True)
            client.next_pos[0] += 100
        stats = pruned.stats(client)
        assert (stats.n_images, stats.n_visual, stats.n_kept, stats.reason) == (1, 200, 200, REASON["outputs"])


@pytest.mark.parametrize("after", range(0, 160, 20))
def test_an_aborted_batch_of_a_refused_picture(path, after):
    with Client(path, n_ubatch=32) as client:
        show(client)
        with aborted(client, after):
            visual_batch(client, 100, output=True)
        client.text(QUESTION)
        np.testing.assert_allclose(client.logits(), answer(path, n_ubatch=32), atol=1e-5)


@pytest.mark.parametrize("after", range(0, 160, 20))
def test_embeddings_asked_for_and_aborted(path, after):
    with Client(path) as client:
        show(client)
        llama_h.llama_set_embeddings(client.ctx, True)
        start = client.next_pos[0]
        with aborted(client, after):
            client.batch(QUESTION, np.arange(start, start + 5), [0] * 5, [True] * 5)
        llama_h.llama_set_embeddings(client.ctx, False)
        client.text(QUESTION)
        np.testing.assert_allclose(client.logits(), answer(path), atol=1e-5)


def test_the_second_half_of_a_refused_picture_is_aborted(path):
    with Client(path) as client:
        visual_batch(client, 100, output=True)
        client.next_pos[0] += 100
        kept = pruned.kept(client)
        with aborted(client, 10):
            visual_batch(client, 100, output=True)
        assert pruned.kept(client) == kept


def fill(client: Client, n: int) -> None:
    client.text([40 + i % 50 for i in range(n)], logits_last=False)


def waiting(client: Client, n: int) -> None:
    client.image(picture(client, 2 * N_VISUAL)[n * N_VISUAL :][:N_VISUAL])


def unpruned(client: Client, n: int) -> None:
    visual_batch(client, N_VISUAL, output=True, seed=n)
    client.next_pos[0] += N_VISUAL


@pytest.mark.parametrize("feed", [waiting, unpruned])
def test_text_that_does_not_fit_is_no_end_of_a_picture(path, feed: Callable[[Client, int], None]):
    with Client(path, n_ctx=256) as client:
        feed(client, 0)
        with refused(client, 1):
            fill(client, 250)
        feed(client, 1)
        stats = pruned.stats(client)
        assert (stats.n_images, stats.n_visual) == (1, 2 * N_VISUAL)

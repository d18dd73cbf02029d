"""Tiles of a picture as one batch are what they are one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from halfv_cpp import mtmd_h as native

from halfv_edge.engine.encoder import Encoder
from halfv_edge.engine.images import Picture
from halfv_edge.testing.client import Client
from tests.support import hf_reference
from tests.support.converted import convert_tiny
from tests.support.encoders import FAST, STOCK, nmse, noise

BATCHING = {"internvl": True, "llava_next_mistral": False}


@pytest.fixture(params=BATCHING)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoders(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Encoder]]:
    """By their attention."""
    pair = convert_tiny(family, root=tmp_path_factory.getbasetemp())
    with ExitStack() as stack:
        client = stack.enter_context(Client(pair.text, n_ctx=64))
        made = {}
        for attention in (STOCK, FAST):
            made[attention] = Encoder.load(
                pair.vision, client.model, pair.text, use_gpu=False, n_threads=1, flash_attn=1, image_max_tokens=None,
                cache_bytes=0, weights="file", attention=attention,
            )  # fmt: skip
            stack.callback(made[attention].close)
        yield made


def embeddings(encoder: Encoder, picture: Picture) -> list[np.ndarray]:
    encoded = encoder.tokens(picture)
    encoder.encode(encoded)
    return [chunk.embd for chunk in encoded.chunks]


def test_batches(family: str, encoders: dict[int, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    width, height = hf_reference.SIZES[family]
    picture = Picture("picture", noise(2 * width, height))
    calls = []
    run = native.mtmd_batch_encode
    monkeypatch.setattr(native, "mtmd_batch_encode", lambda batch: calls.append(batch) or run(batch))
    for encoder in encoders.values():
        assert not encoder.batches  # on a CPU
        calls.clear()
        alone = embeddings(encoder, picture)
        assert len(calls) == len(alone) > 2
        encoder.batches = True
        calls.clear()
        together = embeddings(encoder, picture)
        assert len(calls) == (1 if BATCHING[family] else len(alone))
        assert [part.shape for part in together] == [part.shape for part in alone]
        assert max(nmse(a, b) for a, b in zip(together, alone, strict=True)) < 1e-8
        assert nmse(alone[0], alone[1]) > 0.01  # they differ from tile to tile

"""An encoder tells how far it is while it computes, and computes the same."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import halfv_mtmd_h

from halfv_edge.engine import encoder
from halfv_edge.engine.images import Picture
from tests.support.encoders import FAST, N_EMBD, Encoders, noise
from tests.support.tiny_encoders import N_LAYER, make_windowed
from tests.support.tiny_mmproj import make_tiny_mmproj

NEVER = 1000.0  # seconds


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
    with Encoders(tmp_path_factory.mktemp("encoders")) as made:
        yield made


@pytest.fixture(scope="module", params=["qwen2.5vl_merger", "llava-next"])
def mmproj(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mmproj") / "mmproj.gguf"
    if request.param == "llava-next":
        return make_tiny_mmproj(path, request.param, n_embd=N_EMBD)
    return make_windowed(path, request.param, n_embd=N_EMBD)


def told(encoders: Encoders, mmproj: Path, monkeypatch: pytest.MonkeyPatch, every: float) -> tuple[list[float], bytes]:
    """Each share that was told of a picture, and its embeddings."""
    shares: list[float] = []

    class Watched(encoder.Encoder):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "share_done" and value:
                shares.append(float(value))  # type: ignore[arg-type]
            super().__setattr__(name, value)

    monkeypatch.setattr(encoder, "TELL_SEC", every)
    monkeypatch.setattr("tests.support.encoders.Encoder", Watched)
    found = encoders.embeddings(mmproj, noise(420, 300), attention=FAST)
    return shares, found.tobytes()


def test_shares(encoders: Encoders, mmproj: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, watched = told(encoders, mmproj, monkeypatch, every=0.0)
    assert len(shares) >= N_LAYER and shares[-1] == 1.0
    assert shares[0] > 0 and all(a < b for a, b in itertools.pairwise(shares))
    quick, whole = told(encoders, mmproj, monkeypatch, every=NEVER)
    assert quick == [] and whole == watched


def test_only_the_thread_that_watches(encoders: Encoders, mmproj: Path) -> None:
    shares: list[float] = []
    callback = halfv_mtmd_h.halfv_encode_callback(lambda share, _: shares.append(share))
    found: list[np.ndarray] = []
    with encoders.open(mmproj) as one:
        encoded = one.tokens(Picture("picture", noise(300, 300)))
        chunk = next(item for item in one._tokenize(one.pointer, encoded.picture, pixels=True) if hasattr(item, "grid"))

        def encode() -> None:
            assert encoder.mtmd_h.mtmd_encode_chunk(one.pointer, chunk.pointer) == 0
            out = encoder.mtmd_h.mtmd_get_output_embd(one.pointer)
            found.append(np.ctypeslib.as_array(out, (chunk.n_tokens, one.n_embd)).copy())

        halfv_mtmd_h.halfv_watch_encoding(callback, None, 0.0)
        other = threading.Thread(target=encode)
        other.start()
        other.join()
        assert shares == []
        encode()
        count = len(shares)
        halfv_mtmd_h.halfv_watch_encoding(halfv_mtmd_h.halfv_encode_callback(), None, 0.0)
        encode()
    assert len(shares) == count > 1 and (found[0] == found[1]).all() and (found[0] == found[2]).all()

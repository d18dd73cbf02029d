"""Models to put profiles into."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gguf_bytes import MODEL, TENSORS, gguf
from tests.support.profiles import N_LAYER
from tests.support.tiny_models import make_tiny


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that llama.cpp runs, without a profile."""
    return make_tiny(tmp_path_factory.mktemp("plain") / "plain.gguf", "llama", n_layer=N_LAYER)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hand") / "model.gguf"
    path.write_bytes(gguf(MODEL, TENSORS))
    return path

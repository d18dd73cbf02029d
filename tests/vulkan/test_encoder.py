"""The vision encoder on Vulkan: window by window, and with converted weights, it gives what the CPU gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from encoders import FAST, N_EMBD, STOCK, WINDOWS, Eyes, least_cosine, nmse, noise
from test_vulkan import MAX_NMSE
from tiny_encoders import make_windowed

from halfv_edge import native_log

SIZE = 420, 300  # with edges to the right and below


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eyes]:
    with Eyes(tmp_path_factory.mktemp("eyes")) as eyes:
        yield eyes


@pytest.mark.usefixtures("vulkan_lib_dir")
@pytest.mark.parametrize("flash", [0, 1], ids=["plain", "flash"])
@pytest.mark.parametrize("kind", ["qwen2.5vl_merger", "muse-glimmer"])
def test_windows(kind: str, flash: int, eyes: Eyes, tmp_path: Path) -> None:
    mmproj, picture = make_windowed(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD), noise(*SIZE)
    expected = eyes.embeddings(mmproj, picture, attention=STOCK)
    actual = eyes.embeddings(mmproj, picture, attention=WINDOWS, flash=flash, use_gpu=True)
    assert "Vulkan0 compute buffer size" in native_log.text() and "graph splits = 1," in native_log.text()
    assert nmse(actual, expected) <= MAX_NMSE


@pytest.mark.usefixtures("vulkan_lib_dir")
def test_default_types(eyes: Eyes, tmp_path: Path) -> None:
    mmproj, picture = make_windowed(tmp_path / "mmproj.gguf", "qwen2.5vl_merger", n_embd=N_EMBD), noise(*SIZE)
    expected = eyes.embeddings(mmproj, picture)
    actual = eyes.embeddings(mmproj, picture, weights="auto", attention=FAST, use_gpu=True)
    assert least_cosine(actual, expected) >= 0.9995

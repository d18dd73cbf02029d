"""Attention of the vision encoders: by windows it is what the mask over all patches says; in bfloat16 close to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import log

from halfv_edge.profile.profile import Profile
from tests.support import mtmd_prompt
from tests.support.converted import convert_tiny
from tests.support.encoders import FAST, N_EMBD, STOCK, WINDOWS, Encoders, least_cosine, nmse, noise
from tests.support.holes import PICTURES
from tests.support.tiny_encoders import KINDS, make_windowed
from tests.support.tiny_mmproj import make_tiny_mmproj

# whole windows; edges to the right and below, and both; smaller than a window; a single row of windows
SIZES = [(672, 448), (420, 448), (448, 420), (420, 300), (56, 28), (1000, 61)]
MAX_NMSE = 3e-6  # of another order of summation, behind llama.cpp's gelu, which is a table of f16
MAX_NMSE_BF16 = 3e-4
MIN_COSINE = 0.9995


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
    with Encoders(tmp_path_factory.mktemp("encoders")) as encoders:
        yield encoders


@pytest.fixture(scope="module", params=KINDS)
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_windowed(tmp_path_factory.mktemp("windowed") / "mmproj.gguf", request.param, n_embd=N_EMBD)


@pytest.mark.parametrize("flash", [0, 1], ids=["plain", "flash"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_windows_are_what_the_mask_says(windowed: Path, size: tuple[int, int], flash: int, encoders: Encoders) -> None:
    picture = noise(*size)
    expected = encoders.embeddings(windowed, picture, attention=STOCK, flash=flash)
    actual = encoders.embeddings(windowed, picture, attention=WINDOWS, flash=flash)
    assert np.isfinite(expected).all() and expected.std() > 0.1
    assert nmse(actual, expected) <= MAX_NMSE


def test_a_window_is_a_window(encoders: Encoders, tmp_path: Path) -> None:
    """The bound of the test above is far below what another window would change."""
    picture = noise(672, 448)
    mmproj = make_windowed(tmp_path / "mmproj.gguf", "youtuvl", n_embd=N_EMBD)
    other = make_windowed(tmp_path / "other.gguf", "youtuvl", n_embd=N_EMBD, window=12)
    expected = encoders.embeddings(mmproj, picture, attention=WINDOWS)
    assert nmse(encoders.embeddings(other, picture, attention=WINDOWS), expected) > 1000 * MAX_NMSE


@pytest.mark.parametrize("size", SIZES[:5:2], ids=lambda size: f"{size[0]}x{size[1]}")
def test_bfloat16_is_close(windowed: Path, size: tuple[int, int], encoders: Encoders) -> None:
    """Also where the CPU has none: then it is the same as without."""
    picture = noise(*size)
    expected = encoders.embeddings(windowed, picture, attention=STOCK)
    actual = encoders.embeddings(windowed, picture, attention=FAST)
    assert nmse(actual, expected) <= MAX_NMSE_BF16
    assert least_cosine(actual, expected) >= MIN_COSINE


@pytest.mark.parametrize("kind", ["llava", "llava-next", "qwen2vl"])
def test_encoders_without_windows(kind: str, encoders: Encoders, tmp_path: Path) -> None:
    mmproj, picture = make_tiny_mmproj(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD), noise(420, 300)
    expected = encoders.embeddings(mmproj, picture, attention=STOCK)
    assert encoders.embeddings(mmproj, picture, attention=WINDOWS).tobytes() == expected.tobytes()
    actual = encoders.embeddings(mmproj, picture, attention=FAST)
    assert nmse(actual, expected) <= MAX_NMSE_BF16
    assert least_cosine(actual, expected) >= MIN_COSINE


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("attention", [WINDOWS, FAST])
def test_windows_with_holes(
    attention: int, flash: bool, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of patches that PixelPrune left: windows of any length."""
    pair = convert_tiny("qwen2_5_vl", root=tmp_path_factory.getbasetemp())
    picture = PICTURES["page"](10 * 28, 7 * 28, 28)
    monkeypatch.setattr(mtmd_prompt, "FLASH_ATTN", flash)

    def embeddings(attention: int) -> np.ndarray:
        monkeypatch.setattr(mtmd_prompt, "ATTENTION", attention)
        profile = Profile(1, 1.0, 0.1, 4, 1.0, "dropped", pixel_tau=0)
        on_model = lambda model: halfv_cpp.set_model_profile(model, profile.to_c())  # noqa: E731
        return mtmd_prompt.run_prompt(
            pair.text, pair.vision, picture, f"what is {mtmd_prompt.MARKER}", on_model=on_model
        ).pictures[0]

    expected = embeddings(STOCK)
    assert len(expected) < 60
    assert nmse(embeddings(attention), expected) <= (MAX_NMSE_BF16 if attention == FAST else MAX_NMSE)


def test_memory_grows_with_the_patches(encoders: Encoders, tmp_path: Path) -> None:
    """Four times the patches need four times the memory, where a mask would need sixteen times as much."""
    mmproj = make_windowed(tmp_path / "mmproj.gguf", "qwen2.5vl_merger", n_embd=N_EMBD)
    log.capture()  # a client of another test may have taken the log

    def compute_mib(side: int, attention: int) -> float:
        encoders.embeddings(mmproj, noise(side, side), attention=attention)
        return max(float(size) for size in re.findall(r"compute buffer size = +([\d.]+) MiB", log.text()))

    by_windows = [compute_mib(side, WINDOWS) for side in (448, 896)]
    by_mask = [compute_mib(side, STOCK) for side in (448, 896)]
    assert by_windows[1] < 5 * by_windows[0]
    assert by_mask[1] - by_windows[1] > 4096**2 * 4 / 2**20 / 2  # a mask of floats; half, as other memory is reused


def test_settings_are_checked() -> None:
    assert halfv_cpp.halfv_set_encoder(b"auto", FAST + 1) == halfv_cpp.HALFV_ERR_ARGUMENT
    assert halfv_cpp.halfv_last_error() == b"halfv: attention = 3 is none of enum halfv_attention"

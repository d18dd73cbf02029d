"""The vision encoder on a GPU gives what the CPU gives: in windows, of converted weights, of patches left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from halfv_cpp import ggml_h, log
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback
from PIL import Image

from halfv_edge.testing.random_mmproj import write_mmproj
from tests.support.agreement import MAX_NMSE
from tests.support.drawn import entering, page
from tests.support.encoders import FAST, N_EMBD, STOCK, WINDOWS, Encoders, least_cosine, nmse, noise
from tests.support.tiny_encoders import make_windowed

N_VISION = 256  # of four heads: CUDA's flash attention takes no narrower ones
SIZE = 420, 300  # with edges to the right and below
SIDE, COLUMNS, ROWS = 28, 13, 11  # of a visual token; a page of so many


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
    with Encoders(tmp_path_factory.mktemp("encoders")) as encoders:
        yield encoders


@pytest.mark.parametrize("flash", [0, 1], ids=["plain", "flash"])
@pytest.mark.parametrize("kind", ["qwen2.5vl_merger", "muse-glimmer"])
def test_windows(kind: str, flash: int, gpu: str, encoders: Encoders, tmp_path: Path) -> None:
    mmproj, picture = make_windowed(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD, n_vision=N_VISION), noise(*SIZE)
    expected = encoders.embeddings(mmproj, picture, attention=STOCK)
    actual = encoders.embeddings(mmproj, picture, attention=WINDOWS, flash=flash, use_gpu=True)
    assert f"{gpu} compute buffer size" in log.text() and "graph splits = 1," in log.text()
    assert nmse(actual, expected) <= MAX_NMSE


@pytest.mark.usefixtures("gpu")
def test_default_types(encoders: Encoders, tmp_path: Path) -> None:
    mmproj = make_windowed(tmp_path / "mmproj.gguf", "qwen2.5vl_merger", n_embd=N_EMBD, n_vision=N_VISION)
    picture = noise(*SIZE)
    expected = encoders.embeddings(mmproj, picture)
    actual = encoders.embeddings(mmproj, picture, weights="auto", attention=FAST, use_gpu=True)
    assert least_cosine(actual, expected) >= 0.9995


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("weights", "width"), [("off", 84), ("auto", 128)])
def test_rows_are_padded(weights: str, width: int, encoders: Encoders, tmp_path: Path) -> None:
    """Those that no kernel likes: 84 numbers between the matrices of a feed-forward network."""
    mmproj = make_windowed(tmp_path / "mmproj.gguf", "qwen2.5vl_merger", n_embd=N_EMBD, n_vision=N_VISION, n_ff=84)
    widths = set()

    def see(tensor: int, ask: bool, _user: object) -> bool:
        if not ask and ggml_h.ggml_op_desc(tensor) == b"MUL_MAT":
            widths.add(ggml_h.ggml_nbytes(tensor) // ggml_h.ggml_nrows(tensor) // 4)
        return True

    encoders.embeddings(
        mmproj, noise(*SIZE), weights=weights, use_gpu=True, on_tensor=ggml_backend_sched_eval_callback(see)
    )
    assert widths & {84, 128} == {width}


@pytest.mark.parametrize("kind", ["qwen2vl", "qwen2.5vl", "llava"])
def test_fewer_groups(kind: str, gpu: str, tmp_path: Path) -> None:
    """In two runs, of which the second sees half of the groups; on the device both."""
    mmproj, picture = write_mmproj(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD, n_vision=128), noise(*SIZE)
    with Encoders(tmp_path, "qwen2vl" if "vl" in kind else "llama") as encoders:
        whole = encoders.embeddings(mmproj, picture)
        expected = encoders.embeddings(mmproj, picture, reduction=(1, 0.5))
        actual = encoders.embeddings(mmproj, picture, reduction=(1, 0.5), use_gpu=True)
    assert f"{gpu} compute buffer size" in log.text() and "graph splits = 1," in log.text()
    assert nmse(actual, expected) <= MAX_NMSE < nmse(whole, expected)


@pytest.mark.parametrize("flash", [0, 1], ids=["plain", "flash"])
@pytest.mark.parametrize("kind", ["qwen2vl", "qwen2.5vl"])
def test_left_out_patches(kind: str, flash: int, gpu: str, tmp_path: Path) -> None:
    """Those of a page's margins; what enters keeps its place, in windows too. The language model has to have M-RoPE."""
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD, n_vision=128)
    drawn = page(COLUMNS * SIDE, ROWS * SIDE, SIDE)
    with Encoders(tmp_path, "qwen2vl") as encoders:
        expected = encoders.embeddings(mmproj, Image.fromarray(drawn), tau=0)
        for attention in (STOCK, WINDOWS):
            how = {"attention": attention, "flash": flash, "use_gpu": True}
            actual = encoders.embeddings(mmproj, Image.fromarray(drawn), tau=0, **how)
            assert f"{gpu} compute buffer size" in log.text() and "graph splits = 1," in log.text()
            assert len(actual) == len(entering(drawn, SIDE)) < 0.7 * COLUMNS * ROWS
            assert nmse(actual, expected) <= MAX_NMSE

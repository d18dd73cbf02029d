"""An encoder's weights: fast types keep the embeddings, off is llama.cpp bit for bit, files can be retyped."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import halfv_cpp
import numpy as np
import pytest
from halfv_cpp import library

from halfv_edge.engine.encoder import MMPROJ_TYPES
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.gguf import mmproj as mmproj_file
from halfv_edge.gguf.read import read_metadata
from halfv_edge.testing.random_mmproj import write_mmproj
from tests.support import ROOT
from tests.support.encoders import FAST, N_EMBD, STOCK, Encoders, least_cosine, nmse, noise
from tests.support.tiny_encoders import KINDS, make_windowed
from tests.support.vlm import Vlms

MIN_COSINE = 0.9995  # of the default choice
# random matrices of 64 columns are the worst case of blocks of 32
LOWEST = {
    "file": 0.999999,
    "f32": 0.999999,
    "f16": 0.99999,
    "bf16": MIN_COSINE,
    "q8_0": 0.999,
    "q5_1": 0.98,
    "q4_0": 0.9,
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
    with Encoders(tmp_path_factory.mktemp("encoders")) as encoders:
        yield encoders


@pytest.fixture(scope="module")
def mmproj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_windowed(tmp_path_factory.mktemp("mmproj") / "mmproj.gguf", "qwen2.5vl_merger", n_embd=N_EMBD)


def in_f16(path: Path) -> Path:
    target = path.with_name("f16-" + path.name)
    mmproj_file.retype(read_metadata(path), target, "f16", progress=False)
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_default_keeps_the_embeddings(kind: str, encoders: Encoders, tmp_path: Path) -> None:
    path = in_f16(make_windowed(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD))
    picture = noise(420, 300)
    expected = encoders.embeddings(path, picture, weights="off", attention=STOCK)
    actual = encoders.embeddings(path, picture, weights="auto", attention=FAST)
    assert least_cosine(actual, expected) >= MIN_COSINE


@pytest.mark.parametrize("kind", ["qwen2.5vl", "llava"])
def test_default_keeps_the_embeddings_of_a_true_width(kind: str, encoders: Encoders, tmp_path: Path) -> None:
    """Rows as long as in the real ones, where errors add up differently; eight layers are enough to see them grow."""
    width = {"n_vision": 1280, "n_head": 16, "n_ff": 3420} if kind == "qwen2.5vl" else {"n_vision": 1024, "n_head": 16}
    path = write_mmproj(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD, n_layer=8, ftype="f16", **width)
    picture = noise(140, 140)
    expected = encoders.embeddings(path, picture, weights="off", attention=STOCK)
    actual = encoders.embeddings(path, picture, weights="auto", attention=FAST)
    assert least_cosine(actual, expected) >= MIN_COSINE


@pytest.mark.parametrize("weights", LOWEST)
def test_types(weights: str, mmproj: Path, encoders: Encoders) -> None:
    picture = noise(420, 300)
    expected = encoders.embeddings(mmproj, picture)
    cosine = least_cosine(encoders.embeddings(mmproj, picture, weights=weights), expected)
    assert cosine >= LOWEST[weights]
    if weights in ("q8_0", "q5_1", "q4_0"):
        assert cosine < LOWEST["f16"]  # it has been converted


def test_padding_changes_nothing(encoders: Encoders, tmp_path: Path) -> None:
    """Rows of 84 become rows of 128; the sum of each is the same but for its order."""
    path = in_f16(make_windowed(tmp_path / "mmproj.gguf", "muse-glimmer", n_embd=N_EMBD))
    picture = noise(420, 300)
    expected = encoders.embeddings(path, picture, weights="off")
    assert nmse(encoders.embeddings(path, picture, weights="file"), expected) < 1e-6


@pytest.mark.parametrize("kind", ["qwen2.5vl_merger", "muse-glimmer"])
@pytest.mark.parametrize("how", ["HALFV=off", "HALFV=0", "off"])
def test_off_is_llama_cpp(kind: str, how: str, encoders: Encoders, stock_lib_dir: Path, tmp_path: Path) -> None:
    path = make_windowed(tmp_path / "mmproj.gguf", kind, n_embd=N_EMBD)

    encode = functools.partial(encode_elsewhere, encoders, path, tmp_path)
    which, stock = encode(stock_lib_dir)
    assert which == "stock"
    if how == "off":
        actual = encoders.embeddings(path, noise_like_driver(), weights="off", flash=-1)
    else:
        which, actual = encode(library.lib_dir(), HALFV=how.removeprefix("HALFV="))
        assert which == "patched"
        assert encode(library.lib_dir())[1].tobytes() != stock.tobytes()
    assert actual.tobytes() == stock.tobytes()


def encode_elsewhere(encoders: Encoders, path: Path, folder: Path, lib_dir: Path, **env: str) -> tuple[str, np.ndarray]:
    """What the libraries say that they are and compute, in a process of its own."""
    done = drive_encode(encoders, path, folder / "out.npy", lib_dir, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1], np.load(folder / "out.npy")


def drive_encode(
    encoders: Encoders, path: Path, out: Path, lib_dir: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.drive_encode", lib_dir, encoders.path, path, out]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


LESSER = "avx512_bf16"  # without it a q8_0 file stays one


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni"])
def test_integers_compute_what_ggml_does(flag: str, encoders: Encoders, mmproj: Path, tmp_path: Path) -> None:
    """A q8_0 file's embeddings: as near to llama.cpp's as rounding leaves them, and not those of widened matrices."""
    if flag not in cpu_flags():
        pytest.skip(f"this CPU has no {flag}")
    path = tmp_path / "q8_0.gguf"
    mmproj_file.retype(read_metadata(mmproj), path, "q8_0", progress=False)
    encode = functools.partial(encode_elsewhere, encoders, path, tmp_path, library.lib_dir())
    other = "avx_vnni" if flag == "avx512_vnni" else "avx512"
    _, ours = encode(HALFV_CPU_WITHOUT=f"{LESSER},{other}")
    _, wide = encode(HALFV_CPU_WITHOUT=f"{LESSER},{other},avx512_vnni,avx_vnni")
    _, stock = encode(HALFV="off")
    assert least_cosine(ours, stock) >= MIN_COSINE
    assert ours.tobytes() != wide.tobytes()


def cpu_flags() -> set[str]:
    """As Linux names them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def test_unknown_instructions_are_one_sentence(encoders: Encoders, mmproj: Path, tmp_path: Path) -> None:
    done = drive_encode(encoders, mmproj, tmp_path / "out.npy", library.lib_dir(), HALFV_CPU_WITHOUT="amx,mmx")
    assert done.returncode == 1  # its assertion that there is a context
    assert 'HALFV_CPU_WITHOUT = "amx,mmx" is not valid: "mmx" is none of avx2, avx512, avx_vnni, ' in done.stderr


def noise_like_driver():
    """The picture of drive_encode.py."""
    return noise(420, 300)


def test_wrong_type(mmproj: Path, encoders: Encoders) -> None:
    assert halfv_cpp.halfv_set_encoder(b"q3", FAST) == halfv_cpp.HALFV_ERR_ARGUMENT
    told = halfv_cpp.halfv_last_error().decode()
    assert told == "halfv: 'q3' is no type for an encoder's weights: use auto, file, off, or f16, bf16, q8_0, ..."
    assert halfv_cpp.halfv_set_encoder(None, FAST) == halfv_cpp.HALFV_ERR_ARGUMENT
    for name in MMPROJ_TYPES:
        assert halfv_cpp.halfv_set_encoder(name.encode(), FAST) == halfv_cpp.HALFV_OK


def test_wrong_type_of_a_model(tmp_path: Path) -> None:
    with (
        Vlms(tmp_path) as vlms,
        pytest.raises(HalfVError, match=r"^mmproj_type = 'q3' is not valid: it must be one of auto, file, off, "),
    ):
        Model.load(vlms.path("llava"), mmproj_type="q3")


#
# halfv quantize-mmproj
#


def halfv(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "halfv_edge", "quantize-mmproj", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_file_in_bf16_is_the_same_as_conversion_at_load(encoders: Encoders, tmp_path: Path) -> None:
    path = in_f16(make_windowed(tmp_path / "mmproj.gguf", "qwen2.5vl_merger", n_embd=N_EMBD, n_ff=96))
    target = tmp_path / "bf16.gguf"
    done = halfv(path, target, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["changed"] == 4 * 7 + 2
    assert told["bytes"] == target.stat().st_size
    picture = noise(420, 300)
    assert (
        encoders.embeddings(target, picture, weights="file").tobytes()
        == encoders.embeddings(path, picture, weights="bf16").tobytes()
    )


@pytest.mark.parametrize("type_name", ["f16", "bf16", "q8_0", "q4_0"])
def test_only_matrices_change(type_name: str, mmproj: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    mmproj_file.retype(read_metadata(mmproj), target, type_name, progress=False)
    before, after = gguf.GGUFReader(mmproj), gguf.GGUFReader(target)
    keys = set(before.fields) | {"general.file_type"}
    assert set(after.fields) == keys
    assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
    wanted = gguf.GGMLQuantizationType[type_name.upper()]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        fits = int(old.shape[0]) % gguf.GGML_QUANT_SIZES[wanted][0] == 0
        is_matrix = len(old.shape) == 2 and old.name.endswith(".weight") and fits
        assert new.tensor_type == (wanted if is_matrix else old.tensor_type), old.name
        if not is_matrix:
            assert new.data.tobytes() == old.data.tobytes()
        elif type_name != "q4_0":
            values = gguf.quants.dequantize(new.data, new.tensor_type).reshape(old.data.shape)
            assert np.abs(values - old.data).max() <= np.abs(old.data).max() / 100


def test_mistakes_are_one_sentence(mmproj: Path, encoders: Encoders, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    small = tmp_path / "q8_0.gguf"
    assert halfv(mmproj, small, "--type", "q8_0").returncode == 0
    for args, told in (
        ((mmproj, target, "--type", "q9"), "'q9' is no type for an encoder's file: it must be one of f32, f16, "),
        ((encoders.path, target), "text.gguf is not a vision encoder: give an mmproj GGUF."),
        ((mmproj, small), "q8_0.gguf is there already: give another name, or --force to replace it."),
        ((small, target), "in a type that loses: give it in f32, f16, bf16."),
        ((tmp_path / "none.gguf", target), "none.gguf cannot be read: No such file"),
    ):
        done = halfv(*args)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and told in done.stderr, done.stderr
        assert not target.exists()

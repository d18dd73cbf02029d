"""With no profile, or switched off, a GPU too computes bit for bit what an unpatched build computes on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from halfv_cpp import library

from halfv_edge.testing.random_mmproj import write_mmproj
from tests.support import ROOT
from tests.support.decoded import decode
from tests.support.talks import SIZES
from tests.support.tiny_models import ARCHS, FREEZE, make_tiny

PLAIN, FLASH = (), ("--flash-attn", "--kv-type", "f16")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("flags", [PLAIN, FLASH], ids=["f32", "flash-f16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_same_bits_as_stock(arch: str, flags: tuple[str, ...], stock_lib_dir: Path, tmp_path: Path) -> None:
    flags = (*flags, "--gpu-layers", "99")
    bare = make_tiny(tmp_path / "bare.gguf", arch, **SIZES)
    profiled = make_tiny(tmp_path / "profiled.gguf", arch, profile=FREEZE | {"min_visual_tokens": 8}, **SIZES)
    which, stock = decode(stock_lib_dir, bare, tmp_path / "stock.npy", *flags)
    assert which == "stock"
    _, again = decode(stock_lib_dir, bare, tmp_path / "again.npy", *flags)
    assert stock.tobytes() == again.tobytes(), "the unpatched libraries do not repeat themselves on this device"
    which, no_profile = decode(library.lib_dir(), bare, tmp_path / "ours.npy", *flags)
    assert which == "patched"
    _, off = decode(library.lib_dir(), profiled, tmp_path / "off.npy", *flags, HALFV="off")
    assert np.isfinite(stock).all() and (stock.std(axis=1) > 0.1).all()
    assert stock.tobytes() == no_profile.tobytes()
    assert stock.tobytes() == off.tobytes()


@pytest.mark.usefixtures("gpu_device")
@pytest.mark.parametrize("kind", ["qwen2vl", "qwen2.5vl"])
def test_encoder_off_is_stock(kind: str, stock_lib_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFV", "off")
    text = make_tiny(tmp_path / "text.gguf", "qwen2vl")
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", kind, n_embd=64, n_vision=128)
    found = []
    for lib_dir in (stock_lib_dir, library.lib_dir()):
        out = tmp_path / f"{len(found)}.npy"
        command = [sys.executable, "-m", "tests.support.drive_encode", lib_dir, text, mmproj, out, "gpu"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append((done.stdout.split()[-1], np.load(out).tobytes()))
    assert [which for which, _ in found] == ["stock", "patched"]
    assert found[0][1] == found[1][1]

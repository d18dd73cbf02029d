"""`halfv profile` when a file cannot be written, and when it is large."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import types
from pathlib import Path

import pytest

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import presets
from tests.support import limited
from tests.support.gguf_bytes import CODES, MODEL, TENSORS, gguf, header, text, u32, u64
from tests.support.profile_command import Run, kept, names


def large(path: Path, size: int) -> Path:
    """A model whose one tensor is a hole of that size."""
    head = header(1, len(MODEL)) + b"".join(MODEL) + text("t") + u32(1) + u64(size // 4) + u32(CODES["u8"]) + u64(0)
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        file.truncate(file.tell() + size)
    return path


def test_disk_full_before_it_begins(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100))
    assert run.fails("strip", model, "--in-place", code=1) == (
        f"{model} cannot be written: it needs {len(gguf(MODEL, TENSORS))} bytes, and there is not that much room."
    )
    assert model.read_bytes() == before
    assert names(model.parent) == ["model.gguf"]


def identity(path: Path) -> tuple[int, int, int]:
    return path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns


@pytest.mark.parametrize("target", ["--in-place", "-o"])
def test_disk_full_while_writing(target: str, tmp_path: Path) -> None:
    path = large(tmp_path / "model.gguf", 40 << 20)
    out = path if target == "--in-place" else tmp_path / "out.gguf"
    before = identity(path)
    args = [target] if target == "--in-place" else [target, out]
    done = limited.halfv("profile", "add", path, "--ivr-keep", "0.5", *args, file_bytes=20 << 20)
    assert done.returncode == 1
    assert done.stderr == f"halfv: {out} cannot be written: it needs 0.04 GB, and there is not that much room.\n"
    assert identity(path) == before
    assert names(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize(
    ("what", "code"),
    [(KeyboardInterrupt(), 130), (OSError(errno.EIO, "Input/output error"), 1), (HalfVError("no"), 2)],
)
def test_interrupted(what: BaseException, code: int, model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()

    def fails(*_: object) -> None:
        raise what

    monkeypatch.setattr(os, "fsync", fails)
    assert run("strip", model, "--in-place", code=code) == ""
    assert run.err.count("\n") == 1
    assert model.read_bytes() == before
    assert names(model.parent) == ["model.gguf"]


# large files


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A process of 128 MiB in all rewrites a file of 320."""
    path = large(tmp_path / "model.gguf", 320 << 20)
    done = limited.halfv("profile", "add", path, "--preset", "llava-1.5-7b", "--in-place", memory_mib=128)
    assert (done.returncode, done.stderr) == (0, f"halfv: wrote {path}.\n")
    metadata = read_metadata(path)
    assert metadata.size - metadata.data == 320 << 20
    assert kept(path) == presets.get("llava-1.5-7b").scaled(6).profile


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, when it takes long; here everything does. Never in a log."""
    monkeypatch.setattr("halfv_edge.gguf.write.BAR_DELAY_SEC", 0)
    for screen, expected in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        replace_keys(read_metadata(model), "halfv.", {}, model.with_name("out.gguf"))
        assert ("out.gguf: " in screen.getvalue()) is expected
        assert ("flushing to the disk: 100%" in screen.getvalue()) is expected

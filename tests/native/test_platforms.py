"""What is different on macOS and Windows, on made-up ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from halfv_cpp import library, machine

FILES = {"linux": "libllama.so", "darwin": "libllama.dylib", "win32": "llama.dll"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the libraries, empty."""
    monkeypatch.setattr(library, "lib_dir", lambda: tmp_path)
    machine.n_cores.cache_clear()
    library.open_library.cache_clear()
    yield tmp_path
    machine.n_cores.cache_clear()
    library.open_library.cache_clear()


@pytest.mark.parametrize("platform", FILES)
def test_names_of_the_libraries(platform: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name in FILES.values():
        (folder / name).touch()
    assert library.library_path("llama") == folder / FILES[platform]
    (folder / FILES[platform]).unlink()
    with pytest.raises(library.LibraryError, match="libllama is missing in"):
        library.library_path("llama")


def test_windows_libraries_of_mingw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    (folder / "libllama.dll").touch()
    assert library.library_path("llama") == folder / "libllama.dll"


def test_windows_looks_for_cuda_where_it_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "add_dll_directory", asked.append, raising=False)
    monkeypatch.setattr(library.ctypes, "CDLL", lambda path: path)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)  # other tests load it, from our real folder
    (folder / "llama.dll").touch()
    library.open_library("llama")
    assert asked == []
    library.open_library.cache_clear()
    monkeypatch.setenv("CUDA_PATH", "C:/cuda")
    library.open_library("llama")
    assert asked == [os.path.join("C:/cuda", "bin")]


def test_cores_of_a_mac_are_the_fast_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"hw.perflevel0.physicalcpu": 6, "hw.physicalcpu": 8}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine, "_sysctl", answers.get)
    assert machine.n_cores() == 6
    del answers["hw.perflevel0.physicalcpu"]  # of an Intel Mac
    machine.n_cores.cache_clear()
    assert machine.n_cores() == 8

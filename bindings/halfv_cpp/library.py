"""Finds our libraries and loads them, one set per process and not before the first call."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

MANIFEST = "build.json"  # written by CMake beside the libraries
GIVEN = "HALFV_LIB_DIR"
# where llama-cpp-python looks, once, when it is imported
LLAMA_CPP_PYTHON = ("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB")


class LibraryError(Exception):
    """The libraries are not there or not usable, in one sentence."""


@functools.cache
def lib_dir() -> Path:
    """The folder of the libraries: HALFV_LIB_DIR, or lib/ in this package."""
    if given := os.environ.get(GIVEN):
        if _file(Path(given), "llama") is None:
            raise LibraryError(f"{GIVEN}={given} holds no llama library: give the folder of one.")
        return Path(given).resolve()
    # an editable install has two package folders: the sources, and the one that CMake installed into
    for folder in sys.modules[__name__.rpartition(".")[0]].__path__:
        if (Path(folder) / "lib" / MANIFEST).is_file():
            return (Path(folder) / "lib").resolve()
    raise LibraryError("The HalfV libraries are not built: run `make build`, or `pip install .` in a clone.")


def include_dir() -> Path | None:
    """The folder of the C headers; a bare CMake build folder has none."""
    headers = lib_dir().parent / "include"
    return headers if (headers / "llama.h").is_file() else None


@functools.cache
def manifest() -> dict[str, Any]:
    """What CMake recorded about the build: versions, commits, compiler. {} for libraries that are not our build."""
    try:
        text = (lib_dir() / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(text)
    return found


def library_path(name: str) -> Path:
    """The file of one of the libraries, for example `llama`."""
    path = _file(lib_dir(), name)
    if path is None:
        raise LibraryError(f"lib{name} is missing in {lib_dir()}: build it again with `make build`.")
    return path


def _file(folder: Path, name: str) -> Path | None:
    patterns = {"win32": (f"{name}.dll", f"lib{name}.dll"), "darwin": (f"lib{name}.dylib",)}
    paths = (folder / pattern for pattern in patterns.get(sys.platform, (f"lib{name}.so",)))
    return next((path for path in paths if path.exists()), None)


@functools.cache
def open_library(name: str) -> ctypes.CDLL:
    """One of the libraries through ctypes; the system loads a file once, whoever opens it."""
    path = library_path(name)
    _share_with_llama_cpp()
    if sys.platform == "win32" and (cuda := os.environ.get("CUDA_PATH")):
        os.add_dll_directory(os.path.join(cuda, "bin"))
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded: {error}") from error


def load() -> None:
    """Load what every program needs, or say why that cannot be."""
    for name in ("llama", "mtmd"):
        library_path(name)
    for name in ("llama", "mtmd"):
        open_library(name)


@functools.cache
def is_patched() -> bool:
    """Whether this libllama has HalfV; a stock one lacks every halfv_ function."""
    return hasattr(open_library("llama"), "halfv_version")


def symbol(name: str, function: str) -> Any:
    """A function of a library."""
    library = open_library(name)
    try:
        return getattr(library, function)
    except AttributeError:
        what = "is a llama.cpp without HalfV" if function.startswith("halfv_") else "is of another version"
        raise LibraryError(f"{library_path(name)} {what}: it has no {function}.") from None


def _share_with_llama_cpp() -> None:
    """Two llama.cpp in one process take each other's functions, so llama-cpp-python has to use the same files."""
    imported = sys.modules.get("llama_cpp.llama_cpp")
    if imported is not None:
        folder = Path(imported._base_path).resolve()
        if folder != lib_dir():
            raise LibraryError(
                f"llama_cpp was already imported with the libraries in {folder}: import halfv_edge.handler before "
                "llama_cpp, or start a new process."
            )
        return
    wanted, found = manifest().get("llama_cpp_python"), installed_llama_cpp_python()
    if wanted is not None and wanted == found:
        os.environ.update(dict.fromkeys(LLAMA_CPP_PYTHON, str(lib_dir())))
    elif wanted is not None and found is not None:
        _refuse_llama_cpp(found, wanted)


@functools.cache
def _refuse_llama_cpp(found: str, wanted: str) -> None:
    sys.meta_path.insert(0, _Refusal(found, wanted))


class _Refusal:
    """Finds a sentence in place of llama_cpp."""

    def __init__(self, found: str, wanted: str):
        self._sentence = (
            f"llama-cpp-python {found} cannot share a process with HalfV's libraries, which are those of {wanted}: "
            "install that version, or use two processes."
        )

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "llama_cpp":
            raise ImportError(self._sentence, name=name)


def installed_llama_cpp_python() -> str | None:
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return None

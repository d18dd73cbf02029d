"""Where our libraries are, and the one way to import llama_cpp with them."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import halfv_edge
from halfv_edge.errors import HalfVError

MANIFEST = "build.json"  # written by CMake beside the libraries


@functools.cache
def lib_dir() -> Path:
    """The folder of the built libraries: HALFV_LIB_DIR, or lib/ in the package."""
    given = os.environ.get("HALFV_LIB_DIR")
    # An editable install has two package folders: the sources, and the one that CMake installed into.
    places = [Path(given)] if given else [Path(folder) / "lib" for folder in halfv_edge.__path__]
    for place in places:
        if (place / MANIFEST).is_file():
            return place.resolve()
    if given:
        raise HalfVError(f"HALFV_LIB_DIR={given} holds no {MANIFEST}: it is not a folder of HalfV libraries.")
    raise HalfVError("The HalfV libraries are not built: run `make build`, or `pip install .` in a clone.")


def include_dir() -> Path | None:
    """The folder of the C headers; a bare CMake build folder has none."""
    headers = lib_dir().parent / "include"
    return headers if (headers / "llama.h").is_file() else None


@functools.cache
def manifest() -> dict[str, Any]:
    """What CMake recorded about the build."""
    return json.loads((lib_dir() / MANIFEST).read_text())


def library_path(name: str) -> Path:
    """The file of one of our libraries, for example `llama`."""
    patterns = {"win32": (f"{name}.dll", f"lib{name}.dll"), "darwin": (f"lib{name}.dylib",)}
    for pattern in patterns.get(sys.platform, (f"lib{name}.so",)):
        path = lib_dir() / pattern
        if path.exists():
            return path
    raise HalfVError(f"lib{name} is missing in {lib_dir()}: build it again with `make build`.")


def open_library(name: str) -> ctypes.CDLL:
    """One of our libraries through ctypes; llama_cpp uses the same one, as a library is loaded once per process."""
    path = library_path(name)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise HalfVError(f"{path} cannot be loaded: {error}") from error


def load() -> ModuleType:
    """Import llama_cpp with our libraries, or say why that cannot be."""
    folder = lib_dir()
    for name in ("llama", "mtmd"):
        library_path(name)

    pin = manifest()["llama_cpp_python"]
    try:
        found = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != pin:
        raise HalfVError(
            f"llama-cpp-python {found} is installed, but the HalfV libraries need {pin}: run "
            f"`CMAKE_ARGS=-DLLAMA_BUILD=OFF pip install --no-cache-dir llama-cpp-python=={pin}`."
        )

    imported = sys.modules.get("llama_cpp.llama_cpp")
    if imported is None:
        # Read once at import; the second one by llama_cpp.mtmd_cpp, which is imported when first needed.
        os.environ["LLAMA_CPP_LIB_PATH"] = os.environ["MTMD_CPP_LIB"] = str(folder)
    elif Path(imported._base_path).resolve() != folder:
        raise HalfVError(
            f"llama_cpp was already imported with the libraries in {imported._base_path}: "
            "import halfv_edge's classes before llama_cpp, or start a new process."
        )
    return importlib.import_module("llama_cpp")

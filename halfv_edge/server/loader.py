"""The environment in which a program that was built elsewhere loads our libraries in place of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from halfv_cpp import library

from halfv_edge import files
from halfv_edge.errors import HalfVError

SEARCH_PATHS = {"linux": "LD_LIBRARY_PATH", "darwin": "DYLD_LIBRARY_PATH"}
# upstream's shared libraries carry this number in their names; a wheel, which has no links, leaves it out
VERSION = 0
LDD_SEC = 20


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """`given`, so that the system's loader and llama-cpp-python look where our libraries are before anywhere else."""
    variable = SEARCH_PATHS.get(sys.platform)
    if variable is None:
        raise HalfVError("halfv run works on Linux and macOS: elsewhere, put the libraries beside the program.")
    folders = [str(_links()), *filter(None, [given.get(variable)])]
    ours = {variable: os.pathsep.join(folders)}
    return {**given, **ours, **dict.fromkeys(library.LLAMA_CPP_PYTHON, str(library.lib_dir()))}


def _links() -> Path:
    """A folder with our libraries under the names that programs ask for: libllama.so.0 beside libllama.so."""
    source = library.lib_dir()
    key = hashlib.sha256(str(source).encode()).hexdigest()[:12]
    folder = files.cache_folder() / "loader" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*source.glob("lib*.so"), *source.glob("lib*.dylib")]:
            versioned = f"{path.stem}.{VERSION}.dylib" if path.suffix == ".dylib" else f"{path.name}.{VERSION}"
            for name in (path.name, versioned):
                _link(folder / name, path)
    except OSError as error:
        raise HalfVError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return folder


def _link(link: Path, target: Path) -> None:
    """Replaced as a whole, as another process may be starting a program with it."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.symlink_to(target)
    partial.replace(link)


def libllama_of(program: Path, env: Mapping[str, str]) -> Path | None:
    """Which libllama the program is linked to in this environment; None where that cannot be told."""
    if sys.platform != "linux":
        return None
    try:
        done = subprocess.run(["ldd", str(program)], env=dict(env), capture_output=True, text=True, timeout=LDD_SEC)
    except (OSError, subprocess.SubprocessError):
        return None
    for line in done.stdout.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow and name.startswith("libllama.so") and rest.startswith("/"):
            return Path(rest.rpartition(" (")[0])
    return None


def is_ours(path: Path) -> bool:
    return path.resolve().parent == library.lib_dir()

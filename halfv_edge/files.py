"""The disk: files read safely and written whole, and the folders for what is kept between runs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from halfv_edge.errors import HalfVError, RunError

OURS = "halfv-edge"
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_folder() -> Path:
    """For what can be made again."""
    return _user_folder("XDG_CACHE_HOME", "Library/Caches", ".cache")


def state_folder() -> Path:
    """For what cannot, such as a history."""
    return _user_folder("XDG_STATE_HOME", "Library/Application Support", ".local/state")


def _user_folder(variable: str, mac: str, other: str) -> Path:
    """Where the system keeps such things; the XDG base directories' variable goes before it everywhere."""
    if given := os.environ.get(variable):
        return Path(given) / OURS
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / OURS
    return Path.home() / (mac if sys.platform == "darwin" else other) / OURS


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened; what goes wrong until the block ends is one sentence."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise HalfVError(f"{path} is a folder: name the file in it.")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise HalfVError(f"{path} is not a regular file.")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise HalfVError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_small(path: Path, most: int, too_long: str) -> bytes:
    """All of a file of at most so many bytes; `too_long`: what a longer one is, and what to do."""
    with reading(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise HalfVError(f"{path} {too_long}.")
    return raw


@contextlib.contextmanager
def writing(target: Path, size: int = 0) -> Iterator[BinaryIO]:
    """A file that becomes `target` when the block ends well, and leaves nothing when it does not."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if shutil.disk_usage(target.parent).free < size:
            raise OSError(errno.ENOSPC, "")
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno in FULL_DISK:
            needs = f"it needs {size / 1e9:.2f} GB" if size >= 1e7 else f"it needs {size} bytes"
            raise RunError(f"{target} cannot be written: {needs}, and there is not that much room.") from error
        kind = RunError if error.errno == errno.EIO else HalfVError
        raise kind(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write(target: Path, data: bytes) -> None:
    """All of a file at once."""
    with writing(target, len(data)) as out:
        out.write(data)


def write_private(target: Path, data: bytes) -> None:
    """The same for the owner alone, in a folder that is made where there is none."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(target, data)
    target.chmod(0o600)


def _sync_folder(folder: Path) -> None:
    """Bring the rename to the disk too, where the system has a way to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""The disk: files read safely and written whole, and the folders for what is kept between runs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from halfv_edge.errors import HalfVError, RunError

OURS = "halfv-edge"
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_folder() -> Path:
    """For what can be made again, by the XDG base directories."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / OURS


def state_folder() -> Path:
    """For what cannot, such as a history."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / OURS


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


def _sync_folder(folder: Path) -> None:
    """Bring the rename to the disk too, where the system has a way to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

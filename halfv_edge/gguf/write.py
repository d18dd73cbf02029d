"""Writes keys into an existing GGUF: everything else, every tensor byte included, is copied as it is."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from halfv_edge import files
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import MAGIC, Entry, Metadata, encode_entry

CHUNK = 256 << 10  # as fast as cp; with chunks of 1 MiB and more ext4 took five times as long
BAR_DELAY_SEC = 1  # no bar for what is done sooner


def replace_keys(
    source: Metadata, prefix: str, new: Mapping[str, tuple[int, Any]], target: Path, *, progress: bool = True
) -> None:
    """Write `source` to `target` without the keys that begin with `prefix`, and with `new` (key: type, value) last.

    `target` may be the source itself: it is replaced at once, when the whole new file is on the disk.
    """
    with rewriting(source, target, prefix, new, progress=progress) as (old, out, bar):
        _copy(old, out, source.data, source.size, bar)


@contextlib.contextmanager
def rewriting(
    source: Metadata,
    target: Path,
    prefix: str,
    new: Mapping[str, tuple[int, Any]],
    infos: bytes | None = None,
    n_data: int | None = None,
    *,
    n_tensors: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[BinaryIO, BinaryIO, tqdm]]:
    """The same up to the tensor data, which the block writes: the old file, the new one, and the bar.

    infos: those of the new tensors, n_tensors or as many as before, with n_data bytes of data; else the old ones.
    """
    n_tensors = source.n_tensors if n_tensors is None else n_tensors
    kept = [entry for key, entry in source.entries.items() if not key.startswith(prefix) and key not in new]
    encoded = b"".join(encode_entry(key, type_, value) for key, (type_, value) in new.items())
    header = struct.pack("<4sIQQ", MAGIC, source.version, n_tensors, len(kept) + len(new))
    n_infos = source.infos_end - source.infos if infos is None else len(infos)
    n_data = source.size - source.data if n_data is None else n_data
    infos_end = len(header) + sum(entry.end - entry.start for entry in kept) + len(encoded) + n_infos
    padded = n_tensors or source.size > source.infos_end
    padding = bytes(-infos_end % source.alignment if padded else 0)
    total = infos_end + len(padding) + n_data

    copied = total - len(header) - len(encoded) - len(padding)
    with files.reading(source.path) as old, files.writing(target, total) as out, _bar(copied, target, progress) as bar:
        info = os.fstat(old.fileno())
        if info.st_size != source.size:
            raise HalfVError(f"{source.path} changed while it was read: try again.")
        out.write(header)
        for start, end in _joined(kept):
            _copy(old, out, start, end, bar)
        out.write(encoded)
        if infos is None:
            _copy(old, out, source.infos, source.infos_end, bar)
        else:
            out.write(infos)
        out.write(padding)
        yield old, out, bar
        if target == source.path:
            os.chmod(out.name, stat.S_IMODE(info.st_mode))
        bar.set_description("flushing to the disk")


def _joined(entries: list[Entry]) -> Iterator[tuple[int, int]]:
    """The byte ranges of neighbouring entries as one."""
    joined: list[tuple[int, int]] = []
    for entry in entries:
        start = joined.pop()[0] if joined and joined[-1][1] == entry.start else entry.start
        joined.append((start, entry.end))
    yield from joined


def _copy(source: BinaryIO, out: BinaryIO, start: int, end: int, bar: tqdm) -> None:
    source.seek(start)
    while start < end:
        chunk = source.read(min(CHUNK, end - start))
        if not chunk:
            raise HalfVError(f"{source.name} changed while it was read: try again.")
        out.write(chunk)
        bar.update(len(chunk))
        start += len(chunk)


def _bar(total: int, target: Path, wanted: bool) -> tqdm:
    disable = None if wanted else True  # None: on a terminal only
    bar = {"total": total, "desc": target.name, "unit": "B", "unit_scale": True, "leave": False}
    return tqdm(**bar, delay=BAR_DELAY_SEC, disable=disable)

"""Results per sample on the disk, so that an interrupted calibration or evaluation goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from halfv_edge.errors import HalfVError

VERSION = 1


class WorkFile:
    """JSON lines: what the results belong to, then one line per result. A line cut short by a crash is left out."""

    def __init__(self, path: Path | None, settings: dict[str, Any]):
        """Results of other settings are replaced; without a path none are kept."""
        self.path = path
        self.results: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if path is not None:
            self._open(path, settings)

    def _open(self, path: Path, settings: dict[str, Any]) -> None:
        head = {"halfv_results": VERSION, **settings}
        whole = 0  # bytes that can stay
        try:
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else []):
                value = _parse(line)
                if value is None or (value != head if number == 0 else value.keys() != {"key", "value"}):
                    break
                whole += len(line)
                if number:
                    self.results[value["key"]] = value["value"]
            self._file = path.open("r+b" if whole else "wb")
            self._file.truncate(whole)
            self._file.seek(whole)
        except OSError as error:
            raise HalfVError(f"{path} cannot be used to keep results: {error.strerror}.") from error
        if not whole:
            self._write(head)

    def add(self, key: str, value: Any) -> None:
        self.results[key] = value
        self._write({"key": key, "value": value})

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise HalfVError(f"{self.path} cannot be written: {os.strerror(error.errno or 0)}.") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

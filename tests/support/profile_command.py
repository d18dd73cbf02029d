"""`halfv profile` in this process, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfv_edge.cli.main import main
from halfv_edge.profile import stored
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile


class Run:
    """One command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self.capsys = capsys

    def __call__(self, *args: str | Path, code: int = 0) -> str:
        self.capsys.readouterr()
        found = main(["profile", *map(str, args)])
        said = self.capsys.readouterr()
        self.err = said.err
        assert found == code, self.err
        return said.out

    def fails(self, *args: str | Path, code: int = 2) -> str:
        """The one sentence."""
        assert self(*args, code=code) == ""
        assert self.err.count("\n") == 1
        return self.err.removeprefix("halfv: ").rstrip("\n")


def kept(path: Path) -> Profile | None:
    return stored.read_gguf(ModelFile.read(path))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())

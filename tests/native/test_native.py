"""Runs the C++ tests of native/tests, one per program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

SOURCES = sorted((ROOT / "native" / "tests").glob("test-*.cpp"))


@pytest.mark.parametrize("name", [path.stem for path in SOURCES])
def test_native(name: str, build_dir: Path) -> None:
    program = build_dir / "bin" / name
    assert program.is_file(), f"{program} is not built: run `make test`"
    done = subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]

"""Every Python that pyproject.toml allows, as far as it is there, compiles every file without a warning."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
FOLDERS = ("bindings", "convert", "examples", "halfv_edge", "scripts", "tests", "training")
COMPILE = """
import pathlib, sys
for folder in sys.argv[1:]:
    for path in pathlib.Path(folder).rglob("*.py"):
        if "_upstream" not in path.parts:
            compile(path.read_bytes(), str(path), "exec")
"""


def interpreter(version: str) -> str | None:
    """On the path, or one of pyenv's, whose own commands on the path only work for the version it is set to."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = glob.glob(f"{pyenv}/versions/{version}.*/bin/python{version}")
    return found[0] if found else shutil.which(f"python{version}")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_file_compiles(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    command = [python, "-W", "error", "-c", COMPILE, *(str(ROOT / folder) for folder in FOLDERS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_oldest_allowed_is_the_first_of_them() -> None:
    assert f'requires-python = ">={VERSIONS[0]}"' in (ROOT / "pyproject.toml").read_text()
    assert f'python_version = "{VERSIONS[0]}"' in (ROOT / "pyproject.toml").read_text()  # what mypy checks against
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in VERSIONS


def test_nothing_that_only_unix_has_is_imported() -> None:
    """But where its absence is expected, inside a function."""
    names = "fcntl|grp|posix|pty|pwd|readline|resource|syslog|termios|tty"
    unix = re.compile(rf"^(?:import|from) (?:{names})\b", re.MULTILINE)
    found = [
        str(path)
        for folder in ("bindings", "convert", "halfv_edge")
        for path in (ROOT / folder).rglob("*.py")
        if "_upstream" not in path.parts and unix.search(path.read_text())
    ]
    assert found == []

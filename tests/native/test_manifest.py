"""build.json has the commit of the repository that was built, and of no other."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest


def write(root: Path, cmake: str, source: Path, folder: Path, **env: str) -> str:
    (folder / "in.json").write_text('{"commit": "@HALFV_COMMIT@"}')
    script = root / "cmake" / "manifest.cmake"
    command = [cmake, f"-DSOURCE={source}", f"-DIN={folder / 'in.json'}", f"-DOUT={folder / 'out.json'}", "-P", script]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / "out.json").read_text())["commit"]


def git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    done = subprocess.run(["git", "-C", folder, *identity, *args], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "commit", "-qm", "one")
    return folder


def test_commit(root: Path, cmake_cache: dict[str, str], repository: Path, tmp_path: Path) -> None:
    cmake = cmake_cache["CMAKE_COMMAND"]
    head = git(repository, "rev-parse", "--short", "HEAD")
    assert write(root, cmake, repository, tmp_path) == head
    (repository / "file").write_text("two")
    assert write(root, cmake, repository, tmp_path) == f"{head}-dirty"


def test_not_that_of_a_repository_around_it(
    root: Path, cmake_cache: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    inside = repository / "vendor"
    inside.mkdir()
    assert write(root, cmake_cache["CMAKE_COMMAND"], inside, tmp_path) == "unknown"

"""Random conversations on one context give what each sequence gives alone. docs/testing.md says how to run more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SEEDS = int(os.environ.get("HALFV_CONVERSATIONS", "200"))


def converse(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.conversations", "--seeds", f"0:{SEEDS}", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})


def test_everything_but_removals(root: Path) -> None:
    done = converse(root, "--keep-all", "--shrink")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} conversations" in done.stderr


@pytest.mark.xfail(reason="a few seeds in a hundred still differ, see docs/testing.md", strict=False)
def test_with_removals(root: Path) -> None:
    done = converse(root, "--failures", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} conversations" in done.stderr

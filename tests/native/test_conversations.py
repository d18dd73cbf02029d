"""Random conversations on one context give what each sequence gives alone. docs/testing.md says how to run more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SEEDS = int(os.environ.get("HALFV_CONVERSATIONS", "300"))


def converse(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.conversations", "--seeds", f"0:{SEEDS}", "--shrink", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})


def test_everything_but_removals(root: Path) -> None:
    done = converse(root, "--keep-all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} conversations" in done.stderr


def test_with_removals(root: Path) -> None:
    done = converse(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} conversations" in done.stderr

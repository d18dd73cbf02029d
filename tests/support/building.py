"""CMake builds that tests share, though they run side by side."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

Command = Sequence[str | Path]


def build(folder: Path, *commands: Command) -> None:
    """Runs commands that write in the build folder `folder`; two at a time would spoil it."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "tests.lock"):
        for command in commands:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert done.returncode == 0, done.stdout[-4000:]

"""Runs `halfv` in a process of its own that may not have much memory, or may not write long files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys
memory, file_size = int(sys.argv[1]) << 20, int(sys.argv[2])
if memory:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
if file_size:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
from halfv_edge.cli.main import main
raise SystemExit(main(sys.argv[3:]))
"""


def halfv(*args: str | Path, memory_mib: int = 0, file_bytes: int = 0) -> subprocess.CompletedProcess[str]:
    """0: no limit."""
    command = [sys.executable, "-c", PROGRAM, str(memory_mib), str(file_bytes), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)

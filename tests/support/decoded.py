"""What one set of libraries computes, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support import ROOT


def decode(lib_dir: Path, model: Path, out: Path, *flags: str, **env: str) -> tuple[str, np.ndarray]:
    command = [sys.executable, "-m", "tests.support.drive_decode", lib_dir, model, out, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1], np.load(out)

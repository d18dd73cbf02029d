"""Layers on two machines, here two ggml-rpc-server on this one: answers are the CPU's, with states saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT
from tests.support.agreement import MAX_NMSE


def test_answers_over_two_servers(rpc_server: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.drive_rpc", "agree", rpc_server, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 10
    for name, answer in found.items():
        assert all(n_bytes > 100_000 for n_bytes in answer["bytes"])  # layers are on both
        assert answer["same_kept"] and answer["nmse"] < MAX_NMSE, f"{name}: {answer}"

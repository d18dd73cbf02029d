"""scripts/pytest-each-file.sh: what a signal ended is tried once more, what failed is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/pytest-each-file.sh"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")


def run(folder: Path, **bodies: str) -> subprocess.CompletedProcess[str]:
    for name, body in bodies.items():
        (folder / f"test_{name}.py").write_text(
            f"import os, pathlib\nruns = pathlib.Path({str(folder / name)!r})\n"
            "def test_it():\n    runs.open('a').write('run ')\n" + f"    {body}\n"
        )
    command = ["bash", str(SCRIPT), str(folder), "-q", "--noconftest", "-p", "no:cacheprovider"]
    return subprocess.run(
        command, cwd=folder, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )


def test_ended_once_is_no_failure(tmp_path: Path) -> None:
    done = run(tmp_path, a="'run run' in runs.read_text() or os.abort()", b="pass")
    assert done.returncode == 0, done.stderr
    assert f"Signal 6 ended the first run of {tmp_path}/test_a.py." in done.stderr
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("run run ", "run ")


@pytest.mark.parametrize(("body", "runs"), [("assert False", 1), ("os.abort()", 2)])
def test_failures_end_in_1_and_the_others_run(tmp_path: Path, body: str, runs: int) -> None:
    done = run(tmp_path, a=body, b="pass")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"Failed: {tmp_path}/test_a.py"
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("run " * runs, "run ")

"""Processes that hold libraries under measurement, and requests to them in turn."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from halfv_cpp import library

from halfv_edge.errors import HalfVError, RunError

Answer = dict[str, Any]


class Worker(contextlib.AbstractContextManager):
    """A process that has loaded one set of libraries and a model."""

    def __init__(self, lib_dir: Path, options: dict[str, Any]):
        if not any(lib_dir.glob("*llama.*")):
            raise HalfVError(f"{lib_dir} holds no llama library: give the folder of one with --stock-lib.")
        self.lib_dir = lib_dir
        command = [sys.executable, "-m", "halfv_edge.measure.bench.worker", json.dumps(options)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {library.GIVEN: str(lib_dir)},
        )

    def ask(self, call: str, **arguments: Any) -> Answer:
        with contextlib.suppress(BrokenPipeError):  # it has said why on stderr
            self.process.stdin.write(json.dumps([call, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RunError(f"The worker with the libraries in {self.lib_dir} ended during '{call}' with code {code}.")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise RunError(f"The libraries in {self.lib_dir} failed: {answer['error']}.")
        return answer

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

"""Processes that hold libraries under measurement, and requests to them in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from halfv_cpp import library

from halfv_edge.errors import HalfVError, RunError
from halfv_edge.profile.profile import WHOLE_INTAKE, Intake

Answer = dict[str, Any]


class EncoderSettings(NamedTuple):
    """What an encoder is told, where it differs from the model's own."""

    max_tokens: int | None = None  # of a picture
    intake: Intake = WHOLE_INTAKE
    weights: str | None = None  # type of its weights

    def as_json(self) -> dict[str, Any]:
        return self._asdict() | {"intake": dataclasses.asdict(self.intake)}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> EncoderSettings:
        return cls(said["max_tokens"], Intake(**said["intake"]), said["weights"])


class Worker(contextlib.AbstractContextManager["Worker"]):
    """A process that has loaded one set of libraries and a model."""

    def __init__(self, lib_dir: Path, settings: dict[str, Any]):
        if not any(lib_dir.glob("*llama.*")):
            raise HalfVError(
                f"{lib_dir} holds no llama library: give the folder of one with {{stock_lib}}.",
                settings={"stock_lib": None},
            )
        self.lib_dir = lib_dir
        command = [sys.executable, "-m", "halfv_edge.measure.bench.worker", json.dumps(settings)]
        environment = os.environ | {library.GIVEN: str(lib_dir)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, call: str, **arguments: Any) -> Answer:
        answer = self._ask(call, arguments)
        if "error" in answer:
            raise RunError(f"The libraries in {self.lib_dir} failed: {answer['error']}.")
        return answer

    def _ask(self, call: str, arguments: dict[str, Any]) -> Answer:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has said why on stderr
            self.process.stdin.write(json.dumps([call, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RunError(f"The worker with the libraries in {self.lib_dir} ended during '{call}' with code {code}.")
        answer: Answer = json.loads(line)
        return answer

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

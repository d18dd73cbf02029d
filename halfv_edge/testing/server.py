"""A llama-server for tests and measurements: started on a free port, asked over HTTP, stopped at the end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SEC = 300


@dataclass(frozen=True)
class Reply:
    """What was answered, token by token, and what it took."""

    text: str
    logprobs: tuple[float, ...]  # of each token
    ttft_sec: float  # as the client sees it
    n_cached: int  # tokens of the prompt that the server had
    n_prompt: int  # and that it had to compute
    pictures: dict[str, Any] | None = None  # timings.halfv, which a stock server does not send


class RunningServer(contextlib.AbstractContextManager["RunningServer"]):
    """A program that serves as llama-server does, on a free port: `command` gets --host and --port appended.

    `env` is added to this process's environment.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until the server is stopped
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)],
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def _wait(self) -> None:
        end = time.monotonic() + START_SEC
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"llama-server ended with {self.process.returncode}: {self.log()[-1000:]}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.1)
        raise RuntimeError(f"llama-server was not ready after {START_SEC} s: {self.log()[-1000:]}")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        end_process(self.process)
        self._log.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """The likeliest answer; options are those of /v1/chat/completions."""
        body = {"messages": messages, "temperature": 0, "stream": True, "logprobs": True, "top_logprobs": 1}
        start = time.perf_counter()
        first: float | None = None
        texts: list[str] = []
        logprobs: list[float] = []
        timings: dict[str, Any] = {}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body | options).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=START_SEC) as lines:
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                timings = event.get("timings") or timings
                for choice in event["choices"]:
                    tokens = (choice.get("logprobs") or {}).get("content") or []
                    if tokens and first is None:
                        first = time.perf_counter() - start
                    logprobs += [token["logprob"] for token in tokens]
                    texts.append(choice["delta"].get("content") or "")
        if first is None:
            raise RuntimeError("llama-server answered without a token")
        return Reply(
            "".join(texts), tuple(logprobs), first, timings["cache_n"], timings["prompt_n"], timings.get("halfv")
        )


class Server(RunningServer):
    """llama-server from a folder of programs."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        mmproj: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        n_threads: int = 1,
    ):
        command = [str(folder / "llama-server"), "-m", str(model), "--mmproj", str(mmproj), "-t", str(n_threads)]
        super().__init__([*command, "--no-warmup", *flags], env)


def end_process(process: subprocess.Popen[Any], seconds: float = 30) -> None:
    """Ask a process to end, and end it where that takes longer."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def about(picture: Path, question: str) -> list[dict[str, Any]]:
    """Messages with a picture and a question."""
    uri = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]

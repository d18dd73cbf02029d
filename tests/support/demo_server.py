"""What tests ask of a llama-server with the demo model, over plain HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfv_edge.hub import demo
from halfv_edge.testing.server import RunningServer, Server
from tests.support import ROOT

MODEL, MMPROJ = demo.DEMO_FOLDER / demo.MODEL, demo.DEMO_FOLDER / demo.MMPROJ
PICTURES = [ROOT / "examples" / f"{name}.png" for name in ("receipt", "chart", "interface", "shapes")]
QUESTIONS = ("What is the total?", "What is the date?", "How many are there?", "Where is the red circle?")
CHAT = "/v1/chat/completions"


def start(programs: Path, *flags: str, env: Mapping[str, str] | None = None) -> Server:
    return Server(programs, MODEL, MMPROJ, *flags, env=env)


def post(server: RunningServer, body: Any, path: str = CHAT) -> tuple[int, dict[str, Any]]:
    """Status and answer; `body` may be bytes that are no JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, raw, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {"text": text.decode("utf-8", "replace")}


def complaint(server: RunningServer, body: Any) -> str:
    """The sentence with which a request is refused as a mistake of the client's."""
    status, answer = post(server, body)
    assert status == 400, (status, answer)
    message: str = answer["error"]["message"]
    return message


def get(server: RunningServer, path: str) -> str:
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def metric(server: RunningServer, name: str) -> float:
    line = next(line for line in get(server, "/metrics").splitlines() if line.startswith(name + " "))
    return float(line.split()[1])

"""`halfv chat` as a program, in a folder of tiny models and pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.terminal import Terminal

ARCHS = {"llava": "llama", "qwen2vl": "qwen2vl", "llava-next": "llama"}
ENDLESS = "root ::= [a-z ] root"


def program(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "halfv_edge", *map(str, args)]


def chat(place: Path, *args: str, kind: str = "llava", stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """`halfv chat` with pipes for everything."""
    command = program("chat", "-m", f"{kind}/m.gguf", "--threads", "1", *args)
    done = subprocess.run(command, cwd=place, input=stdin.encode(), capture_output=True, env=os.environ | env)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def talk(place: Path, *args: str) -> Terminal:
    return Terminal("chat", "-m", "llava/m.gguf", "--threads", "1", *args, cwd=place)

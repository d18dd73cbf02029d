"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from halfv_cpp import library
from halfv_cpp.machine import memory_bytes, n_cores


def describe() -> dict[str, Any]:
    found = {"cpu": platform.processor() or platform.machine(), "cores": n_cores(), "os": platform.platform()}
    info = Path("/proc/cpuinfo")
    if info.is_file() and (name := re.search(r"^model name\s*: (.*)", info.read_text(), re.MULTILINE)):
        found["cpu"] = name[1]
    if (memory := memory_bytes()) is not None:
        found["memory_gib"] = round(memory / 2**30, 1)
    return found


def commit() -> str:
    """The commit that was built, marked when there were changes beside it."""
    return str(library.manifest().get("commit", "unknown"))


def busy() -> str:
    """A warning when other programs are running, else ""."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"other programs are running (load {load:.1f}); times will be too long" if load > 0.5 else ""

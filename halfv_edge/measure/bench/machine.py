"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def physical_cores() -> int:
    if sys.platform == "darwin":
        return int(subprocess.run(["sysctl", "-n", "hw.physicalcpu"], capture_output=True, check=True).stdout)
    places = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    cores = {place.read_text() for place in places}
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(len(cores) or usable, usable)


def describe() -> dict[str, Any]:
    found = {"cpu": platform.processor() or platform.machine(), "cores": physical_cores(), "os": platform.platform()}
    info = Path("/proc/cpuinfo")
    if info.is_file() and (name := re.search(r"^model name\s*: (.*)", info.read_text(), re.MULTILINE)):
        found["cpu"] = name[1]
    memory = Path("/proc/meminfo")
    if memory.is_file():
        found["memory_gib"] = round(int(re.search(r"MemTotal:\s*(\d+)", memory.read_text())[1]) / 2**20, 1)
    return found


def commit() -> str:
    """The commit of this repository, marked when there are changes beside it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown commit"


def warn_when_busy() -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        print(f"warning: other programs are running (load {load:.1f}); times will be too long", file=sys.stderr)

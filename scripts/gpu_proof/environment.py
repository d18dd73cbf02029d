"""What it runs on: prints the devices that the libraries see, as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LINK = "pcie.link.gen.current,pcie.link.width.current"
QUERY = f"name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit,{LINK}"


def card() -> dict[str, str]:
    """As nvidia-smi describes it; {} without one."""
    try:
        said = subprocess.run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"], capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    lines = said.stdout.splitlines()
    return dict(zip(lines[0].split(", "), lines[1].split(", "), strict=False)) if len(lines) > 1 else {}


def collect() -> dict[str, Any]:
    from halfv_cpp import llama_h

    from halfv_edge.cli import info
    from halfv_edge.measure.bench import machine

    found = info.collect()
    return {
        "commit": found["commit"],
        "llama_cpp": found["llama_cpp_commit"],
        "devices": found["devices"],
        "system": llama_h.llama_print_system_info().decode(),
        "machine": machine.describe(),
        "python": sys.version.split()[0],
        "card": card(),
    }


if __name__ == "__main__":
    print(json.dumps(collect()))

#!/usr/bin/env python3
"""Is one build of the libraries as fast as another, a wheel for any machine as one for this machine?

    python scripts/compare-builds.py native=build/py/bin wheel=build/wheel-cpu/bin [--shape scaled] [--tokens 1024]

Each round runs `halfv bench` once with the libraries of each folder, in turn and in a process of its own. The table has
the ratio of each to the first, round by round, so that other work on the machine harms all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

WHAT = {"encode_s": "encoder", "prefill_s": "prefill", "decode_tokens_per_s": "decoding"}
RUNS = ("unpruned", "profile")  # rows of the table of `halfv bench`


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", metavar="NAME=FOLDER", help="where libllama lies")
    parser.add_argument("--shape", help="random weights, as `halfv bench --shape` has them (the demo model)")
    parser.add_argument("--tokens", default="1024", help="with --shape: of the picture (1024)")
    parser.add_argument("--rounds", type=int, default=7, help="(7)")
    args = parser.parse_args(argv)
    builds = {name: Path(folder) for name, _, folder in (text.partition("=") for text in args.builds)}
    for name, folder in builds.items():
        if not any(folder.glob("*llama*")):
            parser.error(f"{name}={folder} is not valid: there is no libllama in that folder.")
    shape = ["--shape", args.shape, "--tokens", args.tokens] if args.shape else []
    found: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
    for at in tqdm(range(args.rounds), unit="round", file=sys.stderr):
        for name in list(builds)[:: 1 if at % 2 else -1]:
            found[name].append(measure(builds[name], shape))
    print(table(found))
    return 0


def measure(folder: Path, shape: list[str]) -> dict[str, float]:
    """Seconds of each part."""
    command = [sys.executable, "-m", "halfv_edge", "bench", *shape, "--repeats", "1", "--json"]
    env = os.environ | {"HALFV_LIB_DIR": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"compare-builds: with the libraries of {folder}: {done.stderr.strip()[-500:]}")
    rows: dict[str, Any] = {row["run"]: row for row in json.loads(done.stdout)["rows"]}
    seconds = {}
    for run in RUNS:
        for key, text in WHAT.items():
            if run == RUNS[0] or key == "prefill_s":  # the others are the same
                value = rows[run][key]["median"]
                seconds[f"{text}, {run}" if key == "prefill_s" else text] = 1 / value if "_per_" in key else value
    return seconds


def table(found: dict[str, list[dict[str, float]]]) -> str:
    base, *others = found
    lines = [f"| | {base} s | {' | '.join(f'{name} / {base}' for name in others)} |", "| --- |" + " --- |" * len(found)]
    for key in found[base][0]:
        cells = [f"{statistics.median(one[key] for one in found[base]):.3f}"]
        for name in others:
            ratios = [one[key] / first[key] for one, first in zip(found[name], found[base], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

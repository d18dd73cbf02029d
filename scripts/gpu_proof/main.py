"""The command line."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gpu_proof import pack, run
from gpu_proof.place import ProofError


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu-proof", description="Prove HalfV on an NVIDIA GPU.")
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="put libraries, packages and tests into one archive")
    packing.add_argument("--build", type=Path, default=Path("build/cuda"), help="CMake build folder (%(default)s)")
    packing.add_argument("--stock", type=Path, default=Path("build/cuda-stock"), help="with HALFV_STOCK (%(default)s)")
    packing.add_argument("-o", "--out", type=Path, required=True, help="folder for gpu-proof.tar.xz")
    packing.set_defaults(call=pack.pack)

    running = commands.add_parser("run", help="run everything that fits the budget, most important first")
    running.add_argument("--out", type=Path, required=True, help="folder for gpu-proof.json and gpu-proof.md")
    running.add_argument("--budget", type=float, default=300, help="seconds; the rest is left out (%(default)s)")
    running.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: to rehearse (%(default)s)")
    running.add_argument("--parts", default=",".join(run.PARTS), help="in this order (%(default)s)")
    running.add_argument("--shapes", default=run.SHAPES, help="NAME:TOKENS+TOKENS, ... (%(default)s)")
    running.add_argument("--profiled", default=run.PROFILED, help="whose time is taken apart (%(default)s)")
    running.add_argument("--draw", default="photo", help="pictures of the part speed: photo, page, ... (%(default)s)")
    running.add_argument("--models", type=Path, help="folder for random weights (memory, if it has 32 GB)")
    running.add_argument("--build", type=Path, help="of a clone, in place of the archive's libraries")
    running.add_argument("--stock", type=Path, help="likewise")
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), help="on the CPU (%(default)s)")
    running.add_argument("--ubatch", type=int, default=512)
    running.set_defaults(call=run.run)
    args = parser.parse_args()
    try:
        args.call(args)
    except ProofError as error:
        print(f"gpu-proof: {error}", file=sys.stderr)
        return 2
    return 0

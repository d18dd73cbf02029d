"""The fuzz targets, a few seconds each from the committed corpus, with HALFV_FUZZ=1. `make fuzz`: for longer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not os.environ.get("HALFV_FUZZ"), reason="it compiles for minutes: set HALFV_FUZZ=1"),
]

SECONDS = 5
TARGETS = sorted(path.name for path in (Path(__file__).parents[2] / "native" / "fuzz" / "corpus").iterdir())


@pytest.fixture(scope="module")
def fuzz_build(root: Path, build_dir: Path, cmake_cache: dict[str, str]) -> Path:
    folder, cmake = build_dir.parent / "fuzz", cmake_cache["CMAKE_COMMAND"]
    ninja = f"-DCMAKE_MAKE_PROGRAM={cmake_cache['CMAKE_MAKE_PROGRAM']}"
    configure = [cmake, "-C", root / "cmake" / "sanitize.cmake", "-G", cmake_cache["CMAKE_GENERATOR"], ninja]
    done = subprocess.run([*configure, "-S", root, "-B", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    if "HALFV_FUZZ:BOOL=ON" not in (folder / "CMakeCache.txt").read_text():
        pytest.skip("clang with libFuzzer and the shared AddressSanitizer runtime is not installed")
    done = subprocess.run([cmake, "--build", folder, "--target", "halfv-fuzz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_target(fuzz_build: Path, root: Path, name: str) -> None:
    command = ["bash", root / "scripts" / "fuzz.sh", fuzz_build, name, str(SECONDS), "-seed=1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-6000:]
    assert "stat::number_of_executed_units" in done.stdout

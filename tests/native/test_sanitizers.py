"""Native tests and edge cases under AddressSanitizer and UndefinedBehaviorSanitizer, profiles under ThreadSanitizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from halfv_edge.profile.profile import Profile
from tests.support.building import build

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers' runtime is preloaded the Linux way"),
]

# Light optimisation compiles fast and keeps stacks readable; OpenMP's pool would be reported as a leak.
OPTIONS = (
    "-DHALFV_BUILD_TESTS=ON",
    "-DHALFV_SERVER=OFF",
    "-DGGML_OPENMP=OFF",
    "-DGGML_LLAMAFILE=OFF",
    *(f"-D{project}_SANITIZE_{kind}=ON" for project in ("LLAMA", "GGML") for kind in ("ADDRESS", "UNDEFINED")),
    *(f"-DCMAKE_{language}_FLAGS_RELEASE=-O1" for language in ("C", "CXX")),
)
INCLUDES = ("include", "ggml/include", "vendor")  # of llama.cpp


@pytest.fixture(scope="module")
def sanitized(root: Path, build_dir: Path, cmake_cache: dict[str, str]) -> Path:
    """The libraries and native tests with sanitizers, built in build/sanitize."""
    folder = build_dir.parent / "sanitize"
    cmake = cmake_cache["CMAKE_COMMAND"]
    programs = ["batch-cost", *sorted(path.stem for path in (root / "native" / "tests").glob("test-*.c*"))]
    configure = [cmake, "-S", root, "-B", folder, "-G", cmake_cache["CMAKE_GENERATOR"], *OPTIONS]
    build(folder, configure, [cmake, "--build", folder, "--parallel", "--target", "halfv", *programs])
    return folder


def run_pytest(root: Path, *arguments: str, **env: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    strict = {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    done = subprocess.run(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | strict | env
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_native_programs(sanitized: Path, root: Path) -> None:
    run_pytest(
        root,
        "tests/native/test_native.py",
        "tests/native/test_capi.py",
        HALFV_BUILD_DIR=str(sanitized),
        ASAN_OPTIONS="detect_leaks=1",
    )


def test_edge_cases(sanitized: Path, root: Path) -> None:
    """Python itself is not instrumented, so its leaks are not looked for."""
    runtimes = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    run_pytest(
        root,
        *("tests/native/test_edge_cases.py", "tests/native/test_prepared.py", "tests/native/test_waiting_memory.py"),
        *("-k", "not conversation and not every_node"),
        LD_PRELOAD=":".join(runtimes),
        ASAN_OPTIONS="detect_leaks=0",
        HALFV_LIB_DIR=str(sanitized / "bin"),
        HALFV_BUILD_DIR=str(sanitized),
    )


def test_profile_of_several_threads(build_dir: Path, llama_tree: Path, tmp_path: Path, root: Path) -> None:
    native, bin_dir, program = root / "native", build_dir / "bin", tmp_path / "program"
    ours = (native / "src" / "profile", native / "src" / "cut", native / "include")
    folders = (*ours, *map(llama_tree.joinpath, INCLUDES))
    sources = (native / f"src/profile/halfv-{name}.cpp" for name in ("profile", "profile-json"))
    compile_it = (
        *("g++", "-std=c++17", "-fsanitize=thread", "-pthread", *(f"-I{folder}" for folder in folders)),
        *(Path(__file__).with_name("profile_threads.cpp"), *sources),
        *(f"-L{bin_dir}", "-lggml-base", f"-Wl,-rpath,{bin_dir}", "-o", program),
    )
    profile = json.dumps(Profile(2, 0.5, 0.1, 6, 0.1, "dropped").to_json())
    for command in (compile_it, [program]):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HALFV_PROFILE": profile})
        if "cannot find" in done.stderr and "tsan" in done.stderr:
            pytest.skip("this compiler came without ThreadSanitizer's runtime")
        if "unexpected memory mapping" in done.stderr:
            pytest.skip("this kernel places memory where ThreadSanitizer does not expect it")
        assert done.returncode == 0, done.stderr[-4000:]

"""halfv.h is plain C, and libllama exports everything it declares."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from halfv_cpp import library

from tests.support.building import build


def test_plain_c_program(tmp_path: Path, root: Path, cmake_cache: dict[str, str]) -> None:
    program = tmp_path / "use_header"
    libraries = library.lib_dir()
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{library.include_dir()}"]
    links = [f"-L{libraries}", "-lllama", f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}"]
    source = str(Path(__file__).with_name("use_header.c"))
    command = [cmake_cache["CMAKE_C_COMPILER"], *flags, source, "-o", str(program), *links]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_declared_function_is_exported(root: Path) -> None:
    text = (root / "native" / "include" / "halfv.h").read_text()
    declared = re.findall(r"^LLAMA_API [^;]*?\b(halfv_\w+)\(", text, re.MULTILINE)
    assert len(declared) > 10
    llama = library.open_library("llama")
    assert [name for name in declared if not hasattr(llama, name)] == []


def test_only_c_of_the_encoder_is_exported() -> None:
    command = ["nm", "-DC", "--defined-only", library.library_path("mtmd")]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert " T mtmd_encode_chunk" in names
    assert re.findall(r" T (halfv::\w+)", names) == []


def test_installed_header_is_ours(root: Path) -> None:
    assert (library.include_dir() / "halfv.h").read_text() == (root / "native" / "include" / "halfv.h").read_text()


def test_without_comparing(root: Path, build_dir: Path, cmake_cache: dict[str, str]) -> None:
    """libllama configures and links with HALFV_COMPARE=OFF, and has nothing of halfv-compare.h."""
    if not shutil.which("ccache"):
        pytest.skip("all of libllama is compiled again, for minutes without ccache")
    folder, cmake = build_dir.parent / "small", cmake_cache["CMAKE_COMMAND"]
    tools = ["-G", cmake_cache["CMAKE_GENERATOR"], f"-DCMAKE_MAKE_PROGRAM={cmake_cache['CMAKE_MAKE_PROGRAM']}"]
    configure = [cmake, *tools, "-S", root, "-B", folder, "-DHALFV_COMPARE=OFF"]
    build(folder, configure, [cmake, "--build", folder, "--target", "llama"])
    command = ["nm", "-DC", "--defined-only", next((folder / "bin").glob("libllama.so"))]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert " T halfv_prepare" in names
    declared = re.findall(r"\b(halfv_\w+)\(", (root / "native" / "include" / "halfv-compare.h").read_text())
    assert "halfv_observe" in declared
    assert [name for name in declared if f" T {name}\n" in names] == []

"""halfv.h is plain C, and libllama exports everything it declares."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from halfv_cpp import library


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


def test_without_comparing(tmp_path: Path, root: Path, llama_tree: Path, cmake_cache: dict[str, str]) -> None:
    """A build with HALFV_COMPARE=OFF needs nothing of native/src/compare."""
    folders = ("src", "include", "ggml/include", "vendor")
    include = [f"-I{llama_tree / name}" for name in folders] + [
        f"-I{root / 'native' / name}" for name in ("src", "include")
    ]
    defined = set()
    for source in (root / "native/src/compare").glob("*.cpp"):
        defined |= set(re.findall(r"^\w.* (?:prefill::)?(\w+)\(.*\{$", source.read_text(), re.MULTILINE))
    assert {"hold_batch", "choose_uniform", "halfv_hold"} <= defined
    for name in ("prefill", "settle", "choose", "api"):
        out = tmp_path / f"{name}.o"
        flags = ["-std=c++17", "-O1", "-DHALFV_NO_COMPARE", *include]
        source = root / "native" / "src" / f"halfv-{name}.cpp"
        command = [cmake_cache["CMAKE_CXX_COMPILER"], *flags, "-c", source, "-o", out]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        symbols = subprocess.run(["nm", "-C", out], capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r" U (?:halfv::)(?:prefill::)?(\w+)", symbols))
        assert not needed & defined, name

"""`halfv run` gives a program our libraries, under the names that a stock build has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
#include <stdio.h>
const char * llama_print_system_info(void);
int main(int argc, char ** argv) { printf("%d %s\\n", argc, llama_print_system_info()); return 7; }
"""
STUB = 'const char * llama_print_system_info(void) { return "the stub"; }'

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs a C compiler and the loader of Linux"
)


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libllama of the name that upstream's shared build has, and nothing else in it."""
    folder = tmp_path_factory.mktemp("stub")
    compile_c(STUB, folder / "libllama.so.0", "-shared", "-fPIC", "-Wl,-soname,libllama.so.0")
    return folder


def compile_c(source: str, target: Path, *flags: str) -> Path:
    subprocess.run(["cc", "-x", "c", "-", "-x", "none", *flags, "-o", target], input=source, text=True, check=True)
    return target


def program(stub: Path, target: Path, *flags: str) -> Path:
    return compile_c(PROGRAM, target, str(stub / "libllama.so.0"), *flags)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "halfv_edge", "run", *words], capture_output=True, text=True)


def test_a_program_gets_our_libllama(stub: Path, tmp_path: Path) -> None:
    for name, flags in {"plain": (), "runpath": ("-Wl,--enable-new-dtags", f"-Wl,-rpath,{stub}")}.items():
        done = run("--", program(stub, tmp_path / name, *flags), "--flag", "-m")
        assert done.returncode == 7, done.stderr  # the program's own
        assert done.stdout.startswith("3 ") and "stub" not in done.stdout and "OPENMP" in done.stdout.upper()


def test_a_program_that_insists_on_its_own(stub: Path, tmp_path: Path) -> None:
    fixed = program(stub, tmp_path / "fixed", "-Wl,--disable-new-dtags", f"-Wl,-rpath,{stub}")
    done = run("--", fixed)
    assert done.returncode == 2 and f"takes libllama from {stub}/libllama.so.0" in done.stderr


def test_profile_is_in_its_environment() -> None:
    done = run("--profile", "qwen2.5-vl-7b", "--", "sh", "-c", 'echo "$HALFV_PROFILE"; echo "$HALFV"')
    assert '"layer":2' in done.stdout and done.stdout.endswith("\n\n")
    assert run("--profile", "off", "--", "sh", "-c", 'echo "$HALFV"').stdout == "off\n"


def test_mistakes() -> None:
    for words, said in (
        ((), "halfv run needs a program after --"),
        (("--", "no-such-program"), "no-such-program is not a program"),
        (("--profile", "nothing.json", "--", "true"), "nothing.json"),
    ):
        done = run(*words)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1

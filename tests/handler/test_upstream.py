"""The handler imports llama_cpp with our libraries, or says in one sentence why that cannot be."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from halfv_cpp import library

from halfv_edge.errors import HalfVError
from halfv_edge.handler import upstream

LOAD = "from halfv_edge.handler import upstream; "


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in library.LLAMA_CPP_PYTHON}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=inherited | env)


def test_uses_our_libraries_whatever_the_environment_says() -> None:
    code = (
        LOAD + "upstream.load(); from llama_cpp import llama_cpp, mtmd_cpp;"
        "print(llama_cpp._lib._name, mtmd_cpp._libmtmd._name, sep='\\n')"
    )
    said = run(code, LLAMA_CPP_LIB_PATH="/nowhere").stdout.splitlines()
    assert said == [str(library.library_path("llama")), str(library.library_path("mtmd"))]


def test_imported_with_ours_before() -> None:
    code = "import llama_cpp; " + LOAD + "assert upstream.load() is llama_cpp"
    done = run(code, LLAMA_CPP_LIB_PATH=str(library.lib_dir()))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "load", [LOAD + "upstream.load()", "from halfv_edge.engine import libraries; libraries.load()"]
)
def test_imported_with_others_before(tmp_path: Path, load: str) -> None:
    other = shutil.copytree(library.lib_dir(), tmp_path / "other")
    done = run("import llama_cpp; " + load, LLAMA_CPP_LIB_PATH=str(other))
    assert f"HalfVError: llama_cpp was already imported with the libraries in {other}" in done.stderr


def test_imported_after_the_engine_has_loaded_ours() -> None:
    code = "import halfv_cpp; halfv_cpp.halfv_version(); from llama_cpp import llama_cpp; print(llama_cpp._lib._name)"
    assert run(code).stdout == f"{library.library_path('llama')}\n"


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.2")
    with pytest.raises(HalfVError, match=r"llama-cpp-python 0\.1\.2 is installed, but the HalfV libraries need 0\.3"):
        upstream.load()


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(HalfVError, match=r"is not installed.*pip install halfv-edge\[llama-cpp-python\]"):
        upstream.load()


WITHOUT_LLAMA_CPP = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "llama_cpp":
            raise ModuleNotFoundError("No module named 'llama_cpp'", name="llama_cpp")
sys.meta_path.insert(0, Refuse())
"""


def test_nothing_else_needs_llama_cpp() -> None:
    """Every module of the package but the handler's can be imported, and models run, without it."""
    code = WITHOUT_LLAMA_CPP + (
        "import importlib, pkgutil, halfv_edge\n"
        "for module in pkgutil.walk_packages(halfv_edge.__path__, 'halfv_edge.'):\n"
        "    if '.handler' not in module.name and '_upstream' not in module.name and '__main__' not in module.name\\\n"
        "            and module.name != 'halfv_edge.measure.eval.lmms_eval':\n"
        "        importlib.import_module(module.name)\n"
        "from halfv_edge.engine import libraries; libraries.load()\n"
        "assert 'llama_cpp' not in sys.modules\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr

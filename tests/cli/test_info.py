"""What `halfv info` says is what was built, and every foreseen mistake of loading is one sentence."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import halfv_cpp
import pytest
from halfv_cpp import library

from halfv_edge.measure.bench import machine


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=os.environ | env)


def pin(root: Path, name: str) -> str:
    return re.search(rf"^set\(HALFV_PIN_{name} (\S+)\)", (root / "cmake" / "pin.cmake").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def info() -> dict:
    done = run("-m", "halfv_edge", "info", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_versions(info: dict, root: Path) -> None:
    assert info["version"] == importlib.metadata.version("halfv-edge") == halfv_cpp.halfv_version().decode()
    assert info["pin"] == f"llama-cpp-python=={pin(root, 'VERSION')}"
    assert info["llama_cpp_commit"] == pin(root, "COMMIT")


def test_the_commit_is_what_was_built(info: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the program runs, and without git."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit() == info["commit"] == library.manifest()["commit"]
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", info["commit"])


def test_pyproject_has_the_same_pin(root: Path) -> None:
    assert f'"llama-cpp-python=={pin(root, "VERSION")}"' in (root / "pyproject.toml").read_text()


def test_folders(info: dict) -> None:
    headers = {path.name for path in Path(info["include_dir"]).iterdir()}
    assert headers >= {"halfv.h", "llama.h", "ggml.h", "ggml-backend.h", "gguf.h", "mtmd.h", "mtmd-helper.h"}
    libraries = {path.name.split(".")[0].removeprefix("lib") for path in Path(info["lib_dir"]).iterdir()}
    assert libraries >= {"ggml", "ggml-base", "ggml-cpu", "llama", "mtmd"}


def test_patched(info: dict) -> None:
    assert info["patched"] is library.manifest()["patched"] is True


def test_backends_are_those_configured(info: dict, cmake_cache: dict[str, str]) -> None:
    names = {"CPU": "GGML_CPU", "CUDA": "GGML_CUDA", "Vulkan": "GGML_VULKAN", "MTL": "GGML_METAL"}
    for backend, option in names.items():
        assert (backend in info["backends"]) is (cmake_cache[option] == "ON"), option
    assert [device["type"] for device in info["devices"]].count("cpu") == 1


def test_text_names_the_same(info: dict) -> None:
    text = run("-m", "halfv_edge", "info").stdout
    for key in ("version", "llama_cpp_commit", "pin", "lib_dir"):
        assert info[key] in text
    assert ", patched" in text


def test_console_script() -> None:
    script = Path(sys.executable).parent / "halfv"
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"halfv-edge {importlib.metadata.version('halfv-edge')}\n"


def test_reader_that_goes_away() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "halfv_edge", "info"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_libraries_not_built(tmp_path: Path) -> None:
    done = run("-m", "halfv_edge", "info", HALFV_LIB_DIR=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    said = f"HALFV_LIB_DIR={tmp_path} holds no llama library: give the folder of one."
    assert done.stderr == f"halfv: {said}\n"


def test_one_library_missing(tmp_path: Path) -> None:
    folder = shutil.copytree(library.lib_dir(), tmp_path / "lib")
    os.remove(folder / library.library_path("mtmd").name)
    done = run("-c", "from halfv_edge.engine import libraries; libraries.load()", HALFV_LIB_DIR=str(folder))
    assert f"HalfVError: libmtmd is missing in {folder}" in done.stderr

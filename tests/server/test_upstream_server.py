"""Upstream's own tests of llama-server, those of pictures, chat, slots and the prompt cache, with the demo model."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from halfv_edge.server import llama_server
from tests.support import ROOT
from tests.support.building import build

pytest.importorskip("requests", reason="upstream's tests ask with it")
pytest.importorskip("filelock", reason="upstream's tests lock with it")

FILES = ("vision_api", "slot_save", "kv_keep_only_active", "compat_anthropic", "metrics", "basic")
N_TESTS = 65


def test_upstreams_tests(programs: Path, llama_tree: Path, tmp_path: Path) -> None:
    run_upstreams(programs, llama_tree, tmp_path)


@pytest.mark.skipif(
    os.environ.get("HALFV_UPSTREAM") != "all", reason="it compiles for a minute: set HALFV_UPSTREAM=all"
)
def test_a_stock_server_passes_the_same(
    stock_lib_dir: Path, cmake_cache: dict[str, str], llama_tree: Path, tmp_path: Path
) -> None:
    build(
        stock_lib_dir.parent,
        [cmake_cache["CMAKE_COMMAND"], "--build", stock_lib_dir.parent, "--target", "llama-server"],
    )
    run_upstreams(stock_lib_dir, llama_tree, tmp_path, "unit/test_basic.py::test_no_ui")  # built without the web page


def run_upstreams(programs: Path, llama_tree: Path, tmp_path: Path, *left_out: str) -> None:
    folder = tmp_path / "tests"
    shutil.copytree(llama_tree / "tools" / "server" / "tests", folder)
    (folder / "tmp").mkdir()  # where slots are saved
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"LLAMA_SERVER_BIN_PATH": str(programs / llama_server.NAME), "PYTHONPATH": str(ROOT), "PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.upstream_server", "-p", "no:cacheprovider"]
        + [f"unit/test_{file}.py" for file in FILES]
        + [f"--deselect={test}" for test in left_out],
        cwd=folder,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) == N_TESTS - len(left_out), done.stdout[-500:]

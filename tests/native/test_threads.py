"""Threads beside those of ggml: a pool for an encoder's weights and one per context, of the user's size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_encoders import make_windowed
from tests.support.tiny_models import make_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts by a preloaded library")
PROFILE = {
    "ivr.layer": 1,
    "ivr.keep": 0.5,
    "ivr.anchors": 0.2,
    "ssr.layer": 3,
    "ssr.update": 0.1,
    "ssr.rest": "dropped",
}


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory, cmake_cache: dict[str, str]) -> Path:
    built = tmp_path_factory.mktemp("counter") / "count_threads.so"
    source = Path(__file__).with_name("count_threads.c")
    command = [cmake_cache["CMAKE_C_COMPILER"], "-shared", "-fPIC", source, "-o", built, "-ldl"]
    subprocess.run(command, check=True)
    return built


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_started(tmp_path: Path, root: Path, counter: Path, n_threads: int) -> None:
    text = make_tiny(tmp_path / "text.gguf", "llama", n_embd=64, n_layer=4, profile=PROFILE)
    mmproj = make_windowed(tmp_path / "mmproj.gguf", "qwen2.5vl_merger", n_embd=64)
    command = [sys.executable, "-m", "tests.support.drive_threads", text, mmproj, str(n_threads)]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, env=os.environ | {"LD_PRELOAD": str(counter)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(n_threads - 1), str(n_threads - 1), "0"]

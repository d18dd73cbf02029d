"""Runs native/tests/test-capi.c, a plain C99 program, on tiny models."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tiny_models import make_tiny

BAD_PROFILE = {
    "ivr.layer": 2,
    "ivr.keep": 7.0,
    "ivr.anchors": 0.1,
    "ssr.layer": 4,
    "ssr.update": 0.05,
    "ssr.rest": "dropped",
}


@pytest.fixture(scope="module")
def program(build_dir: Path) -> Path:
    found = build_dir / "bin" / "test-capi"
    assert found.is_file(), f"{found} is not built: run `make test`"
    return found


# one rope kind each, and deep-stack layers
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
def test_every_function(arch: str, program: Path, llama_tree: Path, tmp_path: Path) -> None:
    models = (
        make_tiny(tmp_path / "model.gguf", arch),
        llama_tree / "models" / "ggml-vocab-gpt-2.gguf",
        make_tiny(tmp_path / "bad.gguf", arch, profile=BAD_PROFILE),
    )
    done = subprocess.run([program, *models], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_says_what_it_needs(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 77
    assert done.stderr.startswith("usage: ")

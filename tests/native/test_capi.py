"""Runs the programs of native/tests that need a model, on tiny ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import halfv_cpp
import llama_cpp
import pytest

from halfv_edge.testing.client import Client
from tests.support.tiny_models import DROP, FREEZE, make_tiny

BAD_PROFILE = {
    "ivr.layer": 2,
    "ivr.keep": 7.0,
    "ivr.anchors": 0.1,
    "ssr.layer": 4,
    "ssr.update": 0.05,
    "ssr.rest": "dropped",
}


def built(build_dir: Path, name: str) -> Path:
    found = build_dir / "bin" / name
    assert found.is_file(), f"{found} is not built: run `make test`"
    return found


@pytest.fixture(scope="module")
def program(build_dir: Path) -> Path:
    return built(build_dir, "test-capi")


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


@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
def test_observing(arch: str, build_dir: Path, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model.gguf", arch)
    done = subprocess.run([built(build_dir, "test-observe"), model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_batch_costs_what_it_holds(build_dir: Path, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model.gguf", "llama")
    done = subprocess.run([built(build_dir, "batch-cost"), model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


OTHERS = {
    "min_visual_tokens": 7, "pixel.tau": 2.5, "frames.tau": 0.0, "input.merge": 0.5, "encoder.layer": 3,
    "encoder.keep": 0.5, "ffn.layer": 3, "ffn.keep": 0.5, "heads.layer": 4, "heads.keep": 0.5, "image.loss": 0.25,
    "ivr.query": "question", "ivr.bias": 0.5, "further.layers": [5], "further.keep": [0.0],
}  # fmt: skip
NEAR = {"neighbours.layer": 3, "neighbours.width": 5, "visual_share": 0.5, "input.keep": 0.5}


@pytest.mark.parametrize("profile", [None, DROP, FREEZE | NEAR, DROP | OTHERS], ids=["none", "few", "more", "many"])
def test_a_saved_model_keeps_its_profile(profile: dict | None, tmp_path: Path) -> None:
    """llama_model_save_to_file leaves out all that llama.cpp does not know."""
    with Client(make_tiny(tmp_path / "model.gguf", "llama", profile=profile), n_ctx=64) as client:
        llama_cpp.llama_model_save_to_file(client.model, str(tmp_path / "saved.gguf").encode())
        before = bytes(halfv_cpp.model_profile(client.model) or b"")
    with Client(tmp_path / "saved.gguf", n_ctx=64) as client:
        assert bytes(halfv_cpp.model_profile(client.model) or b"") == before


def test_says_what_it_needs(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 77
    assert done.stderr.startswith("usage: ")

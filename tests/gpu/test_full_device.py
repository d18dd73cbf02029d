"""A device whose memory is full is one sentence. lavapipe's memory is the host's, so that it can be limited."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfv_edge.cli import info
from tests.support import limited
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import QUESTION, picture

LIMIT_MIB = 6144  # of address space; lavapipe and its compiler take about two thirds


def test_a_context_that_does_not_fit(gpu_device: str, tmp_path: Path) -> None:
    if "llvmpipe" not in str(info.collect()["devices"]):
        pytest.skip(f"the memory of {gpu_device} is not the host's")
    model = make_tiny(tmp_path / "m.gguf", "llama", **{"llama.context_length": 1 << 28})
    make_tiny_mmproj(tmp_path / "mmproj-m.gguf", "llava", n_embd=64)
    picture().save(tmp_path / "cat.png")
    run = ("chat", "-m", model, tmp_path / "cat.png", "-p", QUESTION, "--threads", "1", "--ctx", "20000000")
    done = limited.halfv(*run, memory_mib=LIMIT_MIB)
    assert (done.returncode, done.stdout) == (2, "")
    *before, said = done.stderr.splitlines()
    assert said.startswith("halfv: There is not enough memory for a context of 20000000 tokens: lower --ctx, ")
    # ggml writes these past its own log
    assert before and all(line.startswith("ggml_vulkan: ") for line in before)

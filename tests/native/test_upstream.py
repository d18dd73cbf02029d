"""llama.cpp's own tests, built from the patched source: every one that needs no download and that the pin passes.

Left out, with what they do on the unpatched pin:
  test-arg-parser                         asks the network
  test-backend-sampler                    aborts on a model of random weights
  test-backend-ops                        compares the CPU with itself, for ten minutes
  test-fusion, test-export-graph-ops, test-quantize-stats, test-quantize-perf, test-chat-analysis, test-gbnf-validator
                                          programs that want arguments, not tests
  test-chat                               links the server, which takes minutes to compile
HALFV_UPSTREAM=all adds those of ggml or libcommon alone, which no patch touches.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.building import build

pytestmark = pytest.mark.long

VOCABULARIES = (
    *("bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe"),
    *("llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)

# A model of random weights that test-llama-archs writes stands for the ones that upstream downloads.
SAVED_ARCHS = "^(llama|qwen2|qwen3|qwen2vl|qwen3vl|gemma3|mamba2|jamba|lfm2|qwen35)$"
MODEL = "{saved}/llama-dense.gguf"

CASES: dict[str, tuple[str, ...]] = {
    "test-unicode": (),
    "test-sampling": (),
    "test-grammar-parser": (),
    "test-grammar-integration": (),
    "test-llama-grammar": (),
    "test-json-schema-to-grammar": (),
    "test-opt": (),
    "test-gguf": (),
    "test-alloc": (),
    "test-rope": (),
    "test-batch-alloc": (),
    "test-mtmd-c-api": (),
    "test-mtmd-impl": (),
    "test-recurrent-state-rollback": ("--models", "{saved}"),
    "test-save-load-state": ("--models", "{saved}"),
    "test-state-restore-fragmented": ("-m", MODEL),
    "test-model-load-cancel": (MODEL,),
    "test-autorelease": (MODEL,),
    "test-thread-safety": (
        *("-m", MODEL, "-ngl", "99", "-p", "The meaning of life is"),
        *("-n", "128", "-c", "256", "-ub", "32", "-np", "4", "-t", "2"),
    ),
    "test-tokenizer-1-spm": ("models/ggml-vocab-llama-spm.gguf",),
}

UNPATCHED = (
    *(
        "test-barrier",
        "test-c",
        "test-chat-auto-parser",
        "test-chat-peg-parser",
        "test-chat-template",
        "test-col2im-1d",
    ),
    *("test-jinja", "test-json-schema", "test-log", "test-model-resolution", "test-peg-parser", "test-quantize-fns"),
    *("test-reasoning-budget", "test-tiled-mulmat"),
)
if os.environ.get("HALFV_UPSTREAM") == "all":
    CASES |= dict.fromkeys(UNPATCHED, ())

# What those say at their end that could otherwise pass by doing nothing, as some do without a model.
SAYS = {
    "test-alloc": "test_graph_optimize_alloc_dep PASSED",
    "test-autorelease": "llama_context:",
    "test-batch-alloc": "failures   : 0",
    "test-gguf": "101/101 tests passed",
    "test-grammar-integration": "All tests passed.",
    "test-model-load-cancel": "cancelled model load",
    "test-mtmd-c-api": "DONE: test libmtmd C API",
    "test-mtmd-impl": "failures   : 0",
    "test-opt": "2/2 backend*optimizer passed",
    "test-recurrent-state-rollback": "PASS",
    "test-save-load-state": "PASS",
    "test-state-restore-fragmented": "SUCCESS",
    "test-thread-safety": ": The meaning of life is",
}


@pytest.fixture(scope="module")
def programs(build_dir: Path, cmake_cache: dict[str, str]) -> Path:
    targets = [*CASES, "test-llama-archs", "test-tokenizer-0"]
    build(build_dir, [cmake_cache["CMAKE_COMMAND"], "--build", build_dir, "--parallel", "--target", *targets])
    return build_dir / "bin"


def run(command: list[str | Path], tree: Path) -> str:
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},  # spinning threads take minutes on a busy machine
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",  # test-grammar-integration prints invalid UTF-8
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def saved(programs: Path, llama_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archs")
    run([programs / "test-llama-archs", "-s", "1", "-o", folder, "-a", SAVED_ARCHS], llama_tree)
    assert (folder / "llama-dense.gguf").is_file()
    return folder


def test_every_architecture(programs: Path, llama_tree: Path) -> None:
    """Logits, state and splits of every architecture that upstream knows."""
    output = run([programs / "test-llama-archs", "-s", "1"], llama_tree)
    for arch in ("llama", "qwen2", "qwen2vl", "qwen3", "qwen3vl"):
        assert re.search(rf"\|\s*{arch}\|.*OK\x1b", output), arch


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_tokenizer(vocabulary: str, programs: Path, llama_tree: Path) -> None:
    assert "Tests passed" in run([programs / "test-tokenizer-0", f"models/ggml-vocab-{vocabulary}.gguf"], llama_tree)


@pytest.mark.parametrize("name", CASES)
def test_upstream(name: str, programs: Path, saved: Path, llama_tree: Path) -> None:
    arguments = [argument.format(saved=saved) for argument in CASES[name]]
    assert SAYS.get(name, "") in run([programs / name, *arguments], llama_tree)

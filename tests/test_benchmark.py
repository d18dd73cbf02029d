"""benchmarks/prefill.py runs, and what it reports besides times is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from halfv_edge import libs

N_VISUAL, N_KEPT, N_DEEP = 256, 64, 12  # shape `tiny`: keep 0.25, update 0.05
N_PREFIX, N_QUESTION = 8, 40


def benchmark(root: Path, models: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    program = root / "benchmarks" / "prefill.py"
    ours = str(libs.lib_dir())  # as stock too: that worker runs with HALFV=off
    common = ["--lib", ours, "--stock-lib", ours, "--models", str(models), "--repeats", "2", "--decode", "2", "-t", "1"]
    return subprocess.run([sys.executable, program, "--shape", "tiny", *common, *flags], capture_output=True, text=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def measured(root: Path, models: Path, *flags: str) -> tuple[dict, dict]:
    done = benchmark(root, models, "--json", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["commit"]
    assert report["machine"]["cpu"]
    assert [row["n_visual"] for row in report["rows"]] == [N_VISUAL]
    return report, report["rows"][0]


def test_prompt(root: Path, models: Path) -> None:
    _, row = measured(root, models)
    stats = row["stats"]
    assert (stats["n_visual"], stats["n_kept"], stats["n_deep"]) == (N_VISUAL, N_KEPT, N_DEEP)
    assert set(row["ttft_s"]) == set(row["decode_tokens_per_s"]) == {"stock", "halfv"}
    for value in (*row["ttft_s"].values(), row["ttft_ratio"]):
        assert 0 < value["min"] <= value["median"] <= value["max"]

    # heads of 32, 4 and 2 of them; 8 layers x 128; 512 tokens in the vocabulary
    n_embd, q, kv, n_ff, n_vocab = 128, 128, 64, 256, 512

    def span(n_layers: int, n: int, before: int = N_PREFIX) -> float:
        pairs = n * before + n * (n + 1) / 2
        return n_layers * (n * 2 * n_embd * (2 * q + 2 * kv + 3 * n_ff) + pairs * 4 * q)

    head = 2 * n_embd * n_vocab
    dense = span(8, N_VISUAL + N_QUESTION) + head
    stages = span(2, N_VISUAL + N_QUESTION) + span(4, N_KEPT + N_QUESTION) + span(2, N_DEEP + N_QUESTION)
    pruner = 2 * N_VISUAL * q + 2 * N_VISUAL * N_KEPT * n_embd + 2 * N_KEPT * q
    prefix = span(8, N_PREFIX, before=0)
    assert stats["flops_dense"] == pytest.approx(dense, rel=1e-9)
    assert stats["flops_spent"] == pytest.approx(stages + pruner + head, rel=1e-9)
    assert row["flops_ratio"] == pytest.approx((dense + prefix) / (stages + pruner + head + prefix), rel=1e-9)

    n_prompt = N_PREFIX + N_VISUAL + N_QUESTION
    cell = 2 * 2 * kv  # K and V of a layer in f16
    text = N_PREFIX + N_QUESTION
    assert row["kv_bytes"] == {
        "stock": 8 * cell * n_prompt,
        "halfv": cell * (2 * n_prompt + 4 * (text + N_KEPT) + 2 * (text + N_DEEP)),
    }


def test_follow_up(root: Path, models: Path) -> None:
    _, row = measured(root, models, "--follow-up")
    assert all(set(row[key]) == {"stock", "exact", "prepared"} for key in ("picture_s", "first_s", "second_s"))
    n_anchors = N_KEPT // 10
    assert row["stats"]["n_kept"] == N_KEPT + n_anchors
    assert row["stats"]["n_stored"] == N_VISUAL - N_KEPT - n_anchors


def test_off(root: Path, models: Path) -> None:
    _, row = measured(root, models, "--off")
    assert set(row["ttft_cost"]) == set(row["decode_cost"]) == {"HALFV=off", "switched off"}


def test_table(root: Path, models: Path) -> None:
    done = benchmark(root, models)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny (qwen2vl, q4_0), 1 threads")
    assert [line.startswith("| 256 | ") for line in lines] == [False, False, False, False, True]


def test_no_such_libraries(root: Path, models: Path, tmp_path: Path) -> None:
    done = benchmark(root, models, "--stock-lib", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"prefill.py: {tmp_path} holds no llama library")

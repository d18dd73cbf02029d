"""scripts/gpu-proof, packed and run as it would be where there is a GPU: nothing of what it uses has moved."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

LEFT_OUT = ("PYTHONPATH", "HALFV_LIB_DIR", "HALFV_BUILD_DIR", "HALFV_TEST_DEVICE", "HALFV_PROFILE", "HALFV")
LEFT_OUT += ("PYTEST_XDIST_WORKER",)  # the tests in it have workers of their own


NOT_PACKED = ("torch", "transformers", "halfv_convert")
IMPORT_ALL = f"""
import importlib, pathlib, sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_PACKED}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacking())
for path in pathlib.Path("tests/gpu").glob("test_*.py"):
    importlib.import_module(f"tests.gpu.{{path.stem}}")
"""


def test_what_the_tests_of_gpus_import_is_packed() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(sys.platform != "linux", reason="native/trace is for Linux")
def test_rehearsal(build_dir: Path, stock_lib_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    proof = tmp_path / "gpu-proof"
    importlib.import_module("gpu_proof.pack").lay_out(build_dir, stock_lib_dir.parent, proof)

    how = {"shapes": "tiny:64,tiny-qwen3vl:64", "profiled": "tiny:64", "models": tmp_path, "out": tmp_path / "proof"}
    options = [f"--{name}={value}" for name, value in how.items()]
    done = subprocess.run(
        [
            sys.executable,
            proof / "scripts" / "gpu-proof",
            "run",
            "--device=cpu",
            "--threads=1",
            "--repeats=1",
            *options,
        ],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in LEFT_OUT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "proof" / "gpu-proof.json").read_text())
    assert report["skipped"] == []

    outcomes = {test["outcome"] for test in report["parity"]["tests"]}
    assert report["parity"]["complete"] and outcomes == {"passed"}, report["parity"]["tests"]
    assert any(test.get("kept") for test in report["parity"]["tests"])
    for run in ("pruned", "stock", "unpruned"):
        found = report["profile"][f"tiny:64, {run}"]["prompt"]["as_it_is"]
        assert found["calls"]["graphs"] > 0 and found["ms_in"]["graphs"] > 0
    runs = {(row["shape"], row["run"]): row for row in report["speed"]}
    for shape in ("tiny", "tiny-qwen3vl"):
        assert runs[shape, "profile"]["n_kept"] < runs[shape, "stock"]["n_kept"] == 64
    table = done.stdout
    assert "## The GPU against the CPU" in table and "## Where the time goes" in table and "## Speed" in table

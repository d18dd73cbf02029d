"""Layers on two devices that are pretended, or some on the CPU: the CPU's answers, and states cross once, if at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.agreement import MAX_NMSE
from tests.support.talks import COLS, FIRST, ROWS

N_TEXT = 4 + len(FIRST)
WHOLE, KEPT, DEEP, LAST = "all tokens", "those kept", "those that stage III updates", "one for the output head"

# Layers 0 and 1 are stage I, 2 and 3 stage II, 4 and 5 stage III. What crosses where the second device begins, if the
# rest is frozen and if it is dropped: frozen tokens have K and V in layers there, dropped ones nothing.
SPLITS: list[tuple[dict[str, Any], str, str]] = [
    ({"n_gpu_layers": 99, "tensor_split": [1, 6]}, WHOLE, WHOLE),
    ({"n_gpu_layers": 99, "tensor_split": [2, 5]}, KEPT, KEPT),
    ({"n_gpu_layers": 99, "tensor_split": [3, 4]}, KEPT, KEPT),
    ({"n_gpu_layers": 99, "tensor_split": [4, 3]}, KEPT, DEEP),
    ({"n_gpu_layers": 99, "tensor_split": [5, 2]}, KEPT, DEEP),
    ({"n_gpu_layers": 5, "tensor_split": [2, 3]}, KEPT, DEEP),
    ({"n_gpu_layers": 3, "tensor_split": [1, 0]}, "", ""),
    ({"n_gpu_layers": 2, "tensor_split": [1, 1]}, LAST, LAST),
]


@pytest.mark.parametrize(("arch", "mode"), [("llama", "freeze"), ("qwen2vl", "drop")])
def test_as_on_the_cpu_and_states_cross_once(arch: str, mode: str, build_dir: Path, tmp_path: Path) -> None:
    splits = json.dumps([split for split, *_ in SPLITS])
    args = [str(build_dir), str(tmp_path), arch, mode, splits]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.drive_split", *args], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for (split, frozen, dropped), found in zip(SPLITS, json.loads(done.stdout), strict=True):
        assert found["kept_otherwise"] == 0 and found["nmse"] < MAX_NMSE, split
        rows = {
            WHOLE: ROWS * COLS + N_TEXT,
            KEPT: found["kept"] + N_TEXT,
            DEEP: found["deep"] + N_TEXT,
            LAST: 1,
            "": 0,
        }
        assert 0 < found["deep"] < found["kept"] < ROWS * COLS
        assert found["rows_across"] == rows[frozen if mode == "freeze" else dropped], split

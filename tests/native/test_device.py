"""On a device (native/tests/device makes one of the CPU): states stay there, and what comes down is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from halfv_edge.testing.random_models import write_model
from tests.support import ROOT
from tests.support.profiles import nested

N_VISUAL, N_EMBD, N_HEAD, N_HEAD_KV, N_VOCAB = 4096, 3584, 28, 4, 512
N_QUESTION = 4  # tokens
PROFILE = {
    "ivr.layer": 1,
    "ivr.keep": 0.25,
    "ivr.anchors": 0.2,
    "ssr.layer": 2,
    "ssr.update": 0.05,
    "ssr.rest": "frozen",
}
SIMILARITIES = sum(256 * (i + 256) for i in range(0, N_VISUAL, 256))
LAST_NORM = N_EMBD  # read once


SHAPE = {"n_embd": N_EMBD, "n_head": N_HEAD, "n_head_kv": N_HEAD_KV, "n_ff": 256, "n_vocab": N_VOCAB}


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as Qwen2.5-VL-7B, three layers deep."""
    path = tmp_path_factory.mktemp("device") / "wide.gguf"
    return write_model(path, "llama", ftype="q4_0", profile=PROFILE, n_layer=3, **SHAPE)


@pytest.fixture(scope="module")
def deepstack_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Qwen3-VL, with three deep-stack layers, of which the last is stage II."""
    path = tmp_path_factory.mktemp("device") / "deepstack.gguf"
    profile = PROFILE | {"ivr.layer": 2, "ssr.layer": 3}
    return write_model(path, "qwen3vl", ftype="q4_0", profile=profile, n_layer=4, n_deepstack_layers=3, **SHAPE)


def count(build_dir: Path, model: Path, n_ubatch: int, **env: str) -> dict[str, int]:
    args = [str(build_dir), str(model), str(N_VISUAL), str(n_ubatch), "99"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.drive_device", *args, *env.values()],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("n_ubatch", [512, 2048])
def test_what_a_picture_moves(wide_model: Path, build_dir: Path, n_ubatch: int) -> None:
    ours, stock = count(build_dir, wide_model, n_ubatch), count(build_dir, wide_model, n_ubatch, HALFV="off")
    assert (ours["kept"], ours["deep"]) == (1024, 204)
    assert ours["round_trips"] == 4 and stock["round_trips"] == 1  # scores, similarities, scores again; logits
    assert ours["bytes_down"] + max(0, ours["bytes_up"] - stock["bytes_up"]) < 40e6
    assert ours["bytes_down"] == 4 * (SIMILARITIES + N_HEAD * (N_VISUAL + ours["kept"]) + LAST_NORM + N_VOCAB)


def test_all_of_the_question_asks_on_the_device(wide_model: Path, build_dir: Path) -> None:
    """Its tokens are asked together; their queries stay."""
    profile = json.dumps(nested(PROFILE | {"version": 1, "ivr.query": "question"}))
    ours = count(build_dir, wide_model, 512, HALFV_PROFILE=profile)
    assert (ours["kept"], ours["deep"]) == (1024, 204)
    assert ours["round_trips"] == 4
    asked = (N_VISUAL + N_QUESTION) * N_QUESTION + ours["kept"]
    assert ours["bytes_down"] == 4 * (SIMILARITIES + N_HEAD * asked + LAST_NORM + N_VOCAB)


def test_deepstack_rows_go_up_once_and_stay(deepstack_model: Path, build_dir: Path) -> None:
    """A token's input is four times as wide as its state. Stock sends it once for each layer that reads of it."""
    ours, stock = count(build_dir, deepstack_model, 512), count(build_dir, deepstack_model, 512, HALFV="off")
    picture = 4 * N_VISUAL * 4 * N_EMBD
    assert (ours["kept"], ours["deep"]) == (1024, 204)
    assert ours["round_trips"] == 4 and stock["round_trips"] == 1
    assert picture < ours["bytes_up"] < picture + 50e6 < stock["bytes_up"]
    assert ours["bytes_down"] == 4 * (SIMILARITIES + N_HEAD * (N_VISUAL + ours["kept"]) + LAST_NORM + N_VOCAB)

"""A pruned prompt on a GPU: the same tokens kept as on the CPU, the same answer. The Gram matrix is the device's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.agreement import Answers, Record, assert_agree
from tests.support.talks import OPTIONS, SIZES
from tests.support.tiny_models import ARCHS, grid_positions, make_tiny, tiny_image

ROWS, COLS = 10, 12
DROP = {"ssr.update": 0.05, "ssr.rest": "dropped"}
PROFILES = {
    "freeze": {"ssr.update": 0.0, "ssr.rest": "frozen"},
    "drop": DROP | {"ivr.bias": 0.5},
}
PARTS = {
    "asked by the question": DROP | {"ivr.query": "question"},
    "fewer, then none": DROP | {"further.layers": (5,), "further.keep": (0.0,)},
    "heads": DROP | {"heads.layer": 2, "heads.keep": 0.5},
    "neighbours": DROP | {"neighbours.layer": 2, "neighbours.width": 3},
    "channels": DROP | {"ffn.layer": 2, "ffn.keep": 0.5},
}
BOTH = {"ivr.layer": 2, "ivr.keep": 0.5, "ivr.anchors": 0.2, "ssr.layer": 4}


def answer(model: Path, prepared: bool, **options: Any) -> Answers:
    with Client(model, n_ctx=256, n_ubatch=64, **options) as client:
        client.text([1, 40, 41, 42], logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        if prepared:
            assert pruned.prepare(client) == pruned.OK
        client.text([50, 51, 52, 53, 54])
        logits = [client.logits(), client.decode(60), client.decode(61)]
        kept = [pruned.kept(client), pruned.kept(client, stage=3)]
        assert len(kept[0]) < ROWS * COLS and len(kept[1]) < len(kept[0])
        return Answers(logits, kept)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("numbers", OPTIONS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("arch", ["qwen2vl", "qwen3vl"])
def test_parts_of_other_systems(
    arch: str,
    part: str,
    numbers: str,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
    tmp_path: Path,
) -> None:
    path = make_tiny(tmp_path / "model.gguf", arch, seed=1, **SIZES)
    options = OPTIONS[numbers] | {"on_model": lambda model: pruned.set_profile(model, BOTH | PARTS[part])}
    with on_cpu():
        expected = answer(path, prepared=False, **options)
    actual = answer(path, prepared=False, n_gpu_layers=99, **options)
    assert_agree(record_property, actual, expected)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("n_gpu_layers", "numbers"), [(99, "f32"), (99, "flash-f16"), (3, "f32")])
@pytest.mark.parametrize("mode", PROFILES)
@pytest.mark.parametrize("arch", ARCHS)
def test_same_choice_and_answer(
    arch: str,
    mode: str,
    n_gpu_layers: int,
    numbers: str,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
    tmp_path: Path,
) -> None:
    seed = 1 if arch == "qwen2vl" else 0  # seed 0 has two tokens too close to call between two devices
    model = make_tiny(tmp_path / "model.gguf", arch, seed=seed, profile=BOTH | PROFILES[mode], **SIZES)
    prepared = n_gpu_layers == 99 and arch == "qwen2vl"
    with on_cpu():
        expected = answer(model, prepared, **OPTIONS[numbers])
    actual = answer(model, prepared, n_gpu_layers=n_gpu_layers, **OPTIONS[numbers])
    assert_agree(record_property, actual, expected)

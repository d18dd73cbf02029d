"""Memory of each kind, and rows of each form, on a GPU: the same tokens kept as on the CPU, the same answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from halfv_edge.cli import info
from halfv_edge.testing.client import LOG, Client, log_text
from tests.support import ROOT, architectures, deepstack, pruned
from tests.support.agreement import Answers, Record, assert_agree
from tests.support.architectures import MODES, TOP, WHOLE, tell
from tests.support.talks import Talk, answers, one_waits, states

PROGRAM = ROOT / "build" / "py" / "bin" / "save-archs"
KINDS = {
    "llama": "a plain cache",
    "gemma3": "sliding windows",
    "gemma4": "layers that read the cache of another; embeddings per layer go along with the states",
    "gemma3n": "four states per token",
    "deepseek2": "latent keys",
    "qwen35": "recurrent layers",
    "lfm2": "recurrent layers beside sliding windows",
    "kimi-linear": "recurrent layers beside latent keys",
    "cogvlm": "weights for text and others for pictures",
    "granite": "layers that read more of a picture than its embedding, in any order",
    "qwen3vl-stage2": "the same, one after the other",
}
LEAST_STD = 0.03  # llama.cpp's random models are timid
HYBRID = ("qwen35", "lfm2", "kimi-linear")


@pytest.fixture
def model(gpu_device: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind = request.node.callspec.params["kind"]
    if "llvmpipe" in str(info.collect()["devices"]) and not os.environ.get("HALFV_GPU_KINDS"):
        pytest.skip("Mesa 22.3's lavapipe crashes now and then in so many models: set HALFV_GPU_KINDS=1")
    if not PROGRAM.is_file():
        pytest.skip("save-archs, which makes these models, is not built: `make test-vulkan` builds it")
    if kind in deepstack.KINDS:
        return deepstack.save(PROGRAM, kind, tmp_path)
    return architectures.save(PROGRAM, kind, tmp_path)[0]


def answer(model: Path, profile: dict[str, Any], **options: Any) -> Answers:
    with Client(model, n_ctx=256, on_model=partial(pruned.set_profile, profile=profile), **options) as client:
        logits = list(tell(client))
        return Answers(logits, [list(pruned.kept(client, 0, stage)) for stage in (2, 3)])


@pytest.mark.parametrize("kind", KINDS)
def test_same_choice_and_answer(
    kind: str,
    model: Path,
    gpu_device: str,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
) -> None:
    for profile in (WHOLE, TOP) if kind in HYBRID else (WHOLE, *MODES.values()):
        with on_cpu():
            expected = answer(model, profile)
        LOG.clear()
        actual = answer(model, profile, n_gpu_layers=99)
        assert f"tokens in a {gpu_device} buffer" in log_text()  # states stay there
        assert_agree(record_property, actual, expected, LEAST_STD)


@pytest.mark.parametrize("tell_it", [one_waits, states])
# three sequences of kimi-linear end the process in the unpatched pin, too
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "kimi-linear"])
def test_sequences_and_states(
    kind: str,
    tell_it: Callable[[Talk], None],
    model: Path,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
) -> None:
    options = {"on_model": partial(pruned.set_profile, profile=TOP)}
    with on_cpu():
        expected = answers(model, tell_it, **options)
    actual = answers(model, tell_it, n_gpu_layers=99, **options)
    assert_agree(record_property, actual, expected, LEAST_STD)

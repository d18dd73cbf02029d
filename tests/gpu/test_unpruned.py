"""A model with all layers offloaded and no profile computes what the CPU computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from halfv_edge.testing.client import LOG, Client, log_text
from tests.support.agreement import Answers, Record, assert_agree
from tests.support.talks import OPTIONS, SIZES
from tests.support.tiny_models import ARCHS, grid_positions, make_tiny, tiny_image

N_DECODED = 16
N_LAYER = 6
ROWS, COLS = 6, 8


def answer(model: Path, tokens: Sequence[int] = (), **options: Any) -> Answers:
    """Logits after the question and after each decoded token: those given, or else the greedy ones."""
    # The image is longer than a micro-batch, so its graph is built more than once.
    with Client(model, n_ctx=256, n_batch=64, n_ubatch=32, **options) as client:
        client.text([1, 40, 41, 42, 43], logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        client.text([50, 51, 52, 53, 54, 55])
        logits = [client.logits()]
        for step in range(N_DECODED):
            logits.append(client.decode(int(tokens[step] if len(tokens) else logits[-1].argmax())))
    return Answers(logits)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("arch", ARCHS)
def test_same_as_cpu(
    arch: str,
    options: dict[str, Any],
    gpu: str,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
    tmp_path: Path,
) -> None:
    model = make_tiny(tmp_path / "model.gguf", arch, n_layer=N_LAYER, **SIZES)
    with on_cpu():
        LOG.clear()
        expected = answer(model, **options)
        assert gpu not in log_text()
    LOG.clear()
    greedy = [int(logits.argmax()) for logits in expected.logits]
    actual = answer(model, greedy, n_gpu_layers=99, **options)
    log = log_text()

    assert f"offloaded {N_LAYER + 1}/{N_LAYER + 1} layers to GPU" in log
    # Only the lookup of the input rows stays on the host: every other op ran on the device.
    assert {int(count) for count in re.findall(r"splits = (\d+)", log)} <= {1, 2}, log
    assert_agree(record_property, actual, expected)

"""What a context's memory holds on a GPU is what it holds on the CPU: sequences, waiting pictures, states, removals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.gpu.test_pruned import BOTH, PROFILES
from tests.support.agreement import Record, assert_agree
from tests.support.talks import OPTIONS, SIZES, TALKS, Talk, answers
from tests.support.tiny_models import ARCHS, make_tiny


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("mode", "unified", "numbers"), [("freeze", True, "f32"), ("drop", False, "flash-f16")])
@pytest.mark.parametrize("tell", TALKS)
@pytest.mark.parametrize("arch", ARCHS)
def test_same_as_cpu(
    arch: str,
    tell: Callable[[Talk], None],
    mode: str,
    unified: bool,
    numbers: str,
    on_cpu: Callable[[], AbstractContextManager[None]],
    record_property: Record,
    tmp_path: Path,
) -> None:
    model = make_tiny(tmp_path / "model.gguf", arch, seed=1, profile=BOTH | PROFILES[mode], **SIZES)
    options = OPTIONS[numbers] | {"kv_unified": unified}
    with on_cpu():
        expected = answers(model, tell, **options)
    actual = answers(model, tell, n_gpu_layers=99, **options)
    assert_agree(record_property, actual, expected)

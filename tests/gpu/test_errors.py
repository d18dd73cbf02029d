"""What a device computes to choose tokens is exact enough to choose what the host would."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from halfv_cpp import library

from tests.support.agreement import Record

LEAST, EACH = 1e-6, 1.2e-9  # lavapipe adds one product after the other: its error grows with their number
SEEDS = range(2)


class Errors(ctypes.Structure):
    similarity: float
    similarity_host: float
    dot: float
    others: int
    others_host: int
    _fields_ = [
        *((name, ctypes.c_double) for name in ("similarity", "similarity_host", "dot")),
        *((name, ctypes.c_int32) for name in ("others", "others_host")),
    ]


@pytest.mark.parametrize(("n", "d"), [(108, 64), (512, 1024), (256, 3584)])
def test_similarities_and_dots(gpu_device: str, n: int, d: int, record_property: Record) -> None:
    found = [errors(gpu_device, n, d, seed) for seed in SEEDS]
    for name in ("similarity", "similarity_host", "dot", "others", "others_host"):
        record_property(name, max(getattr(one, name) for one in found))
    record_property("chosen", len(found) * (n // 4))
    most = LEAST + EACH * d
    assert 0 < max(one.similarity for one in found) <= most
    assert max(one.dot for one in found) <= most


def errors(device: str, n: int, d: int, seed: int) -> Errors:
    path = next(
        (path for path in (_folder() / f"libdevice-errors.{end}" for end in ("so", "dylib")) if path.exists()), None
    )
    if path is None:
        pytest.skip("the target device-errors is not built")
    found = Errors()
    done = ctypes.CDLL(str(path)).device_errors_measure(device.encode(), n, d, n // 4, seed, ctypes.byref(found))
    assert done == 0, f"{device} could not compute it"
    return found


def _folder() -> Path:
    return Path(library.lib_dir())

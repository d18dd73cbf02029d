"""Devices that native/tests/device makes of the CPU: everything that crosses to them and back is counted."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from halfv_edge.testing.client import Client

FILE = "libpretend-device.so"


class Counts(ctypes.Structure):
    bytes_up: int
    bytes_down: int
    bytes_across: int
    graphs: int
    waits: int
    round_trips: int
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("bytes_up", "bytes_down", "bytes_across", "graphs", "waits", "round_trips")
    ]


class PretendDevice:
    """Once made, models of this process find n GPUs. They stay until the process ends."""

    def __init__(self, folder: Path, n: int = 1) -> None:
        self._lib = ctypes.CDLL(str(folder / FILE))
        self._lib.pretend_device_register(ctypes.c_size_t(n))

    def compute(self, on: bool) -> None:
        self._lib.pretend_device_compute(ctypes.c_bool(on))

    def counts(self) -> Counts:
        """Since the last call."""
        counts = Counts()
        self._lib.pretend_device_counts(ctypes.byref(counts))
        return counts


def use_everywhere(folder: Path) -> None:
    """Every Client offloads all layers to it, unless a test says how many."""
    PretendDevice(folder)
    defaults = Client.__init__.__kwdefaults__
    assert defaults is not None
    defaults["n_gpu_layers"] = 99


def asked_for() -> bool:
    return os.environ.get("HALFV_TEST_DEVICE") == "pretend"

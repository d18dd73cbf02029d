"""The devices that ggml's backends see on this machine."""

from __future__ import annotations

from ctypes import byref, c_size_t
from dataclasses import dataclass

from halfv_cpp import ggml_backend_h

TYPES = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    name: str
    description: str
    type: str
    free_bytes: int
    total_bytes: int


def devices() -> list[Device]:
    return [_device(ggml_backend_h.ggml_backend_dev_get(i)) for i in range(ggml_backend_h.ggml_backend_dev_count())]


def gpus() -> list[Device]:
    """On a card or in the processor. llama_supports_gpu_offload says yes wherever the RPC backend is built in."""
    return [device for device in devices() if device.type in ("gpu", "igpu")]


def _device(handle: int) -> Device:
    free, total = c_size_t(), c_size_t()
    ggml_backend_h.ggml_backend_dev_memory(handle, byref(free), byref(total))
    return Device(
        ggml_backend_h.ggml_backend_dev_name(handle).decode(),
        ggml_backend_h.ggml_backend_dev_description(handle).decode(),
        TYPES[ggml_backend_h.ggml_backend_dev_type(handle)],
        free.value,
        total.value,
    )

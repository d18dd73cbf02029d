"""What is installed: versions, folders, backends and devices."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from typing import Any

import halfv_edge
from halfv_edge import libs

DEVICE_TYPES = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


def collect() -> dict[str, Any]:
    """Everything `halfv info` tells, as plain values."""
    built = libs.manifest()
    include_dir = libs.include_dir()
    ggml = libs.open_library("ggml")
    _declare(ggml)
    return {
        "version": halfv_edge.__version__,
        "llama_cpp_commit": built["llama_cpp_commit"],
        "pin": f"llama-cpp-python=={built['llama_cpp_python']}",
        "patched": hasattr(libs.open_library("llama"), "halfv_version"),
        "lib_dir": str(libs.lib_dir()),
        "include_dir": str(include_dir) if include_dir else None,
        "backends": [
            ggml.ggml_backend_reg_name(ggml.ggml_backend_reg_get(i)).decode()
            for i in range(ggml.ggml_backend_reg_count())
        ],
        "devices": [_device(ggml, ggml.ggml_backend_dev_get(i)) for i in range(ggml.ggml_backend_dev_count())],
    }


def as_text(info: dict[str, Any]) -> str:
    """The same for people."""
    state = "patched" if info["patched"] else "not patched"
    lines = [
        f"HalfV Edge {info['version']}",
        f"llama.cpp  {info['llama_cpp_commit']} ({info['pin']}), {state}",
        f"libraries  {info['lib_dir']}",
        f"headers    {info['include_dir'] or 'none'}",
        f"backends   {', '.join(info['backends'])}",
    ]
    for device in info["devices"]:
        memory = f"{device['memory_total_bytes'] / 2**30:.1f} GiB"
        lines.append(f"device     {device['name']}: {device['description']} ({device['type']}, {memory})")
    return "\n".join(lines)


def _declare(ggml: ctypes.CDLL) -> None:
    """Result and argument types of the functions of ggml-backend.h that are used here."""
    for name, result, *arguments in (
        ("ggml_backend_reg_count", c_size_t),
        ("ggml_backend_reg_get", c_void_p, c_size_t),
        ("ggml_backend_reg_name", c_char_p, c_void_p),
        ("ggml_backend_dev_count", c_size_t),
        ("ggml_backend_dev_get", c_void_p, c_size_t),
        ("ggml_backend_dev_name", c_char_p, c_void_p),
        ("ggml_backend_dev_description", c_char_p, c_void_p),
        ("ggml_backend_dev_type", c_int, c_void_p),
        ("ggml_backend_dev_memory", None, c_void_p, c_void_p, c_void_p),
    ):
        function = getattr(ggml, name)
        function.restype = result
        function.argtypes = arguments


def _device(ggml: ctypes.CDLL, device: int) -> dict[str, Any]:
    free, total = c_size_t(), c_size_t()
    ggml.ggml_backend_dev_memory(device, byref(free), byref(total))
    return {
        "name": ggml.ggml_backend_dev_name(device).decode(),
        "description": ggml.ggml_backend_dev_description(device).decode(),
        "type": DEVICE_TYPES[ggml.ggml_backend_dev_type(device)],
        "memory_free_bytes": free.value,
        "memory_total_bytes": total.value,
    }

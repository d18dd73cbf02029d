"""What is installed: versions, folders, backends and devices."""

from __future__ import annotations

from ctypes import byref, c_size_t
from typing import Any

from halfv_cpp import ggml_backend_h, library, llama_h, log

import halfv_edge

DEVICE_TYPES = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


def collect() -> dict[str, Any]:
    """Everything `halfv info` tells, as plain values."""
    built = library.manifest()
    include_dir = library.include_dir()
    log.capture()
    llama_h.llama_backend_init()  # loads backends that are libraries of their own
    return {
        "version": halfv_edge.__version__,
        "commit": built.get("commit", "unknown"),
        "llama_cpp_commit": built.get("llama_cpp_commit", "unknown"),
        "pin": f"llama-cpp-python=={built.get('llama_cpp_python', 'unknown')}",
        "patched": library.is_patched(),
        "lib_dir": str(library.lib_dir()),
        "include_dir": str(include_dir) if include_dir else None,
        "backends": [
            ggml_backend_h.ggml_backend_reg_name(ggml_backend_h.ggml_backend_reg_get(i)).decode()
            for i in range(ggml_backend_h.ggml_backend_reg_count())
        ],
        "devices": [
            _device(ggml_backend_h.ggml_backend_dev_get(i)) for i in range(ggml_backend_h.ggml_backend_dev_count())
        ],
    }


def as_text(info: dict[str, Any]) -> str:
    """The same for people."""
    state = "patched" if info["patched"] else "not patched"
    lines = [
        f"HalfV Edge {info['version']} ({info['commit']})",
        f"llama.cpp  {info['llama_cpp_commit']} ({info['pin']}), {state}",
        f"libraries  {info['lib_dir']}",
        f"headers    {info['include_dir'] or 'none'}",
        f"backends   {', '.join(info['backends'])}",
    ]
    for device in info["devices"]:
        memory = f"{device['memory_total_bytes'] / 2**30:.1f} GiB"
        lines.append(f"device     {device['name']}: {device['description']} ({device['type']}, {memory})")
    return "\n".join(lines)


def _device(device: int) -> dict[str, Any]:
    free, total = c_size_t(), c_size_t()
    ggml_backend_h.ggml_backend_dev_memory(device, byref(free), byref(total))
    return {
        "name": ggml_backend_h.ggml_backend_dev_name(device).decode(),
        "description": ggml_backend_h.ggml_backend_dev_description(device).decode(),
        "type": DEVICE_TYPES[ggml_backend_h.ggml_backend_dev_type(device)],
        "memory_free_bytes": free.value,
        "memory_total_bytes": total.value,
    }

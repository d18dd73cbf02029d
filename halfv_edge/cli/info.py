"""What is installed: versions, folders, backends and devices."""

from __future__ import annotations

from typing import Any

from halfv_cpp import devices, ggml_backend_h, library, llama_h, log

import halfv_edge


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
        "devices": [_device(device) for device in devices.devices()],
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


def _device(device: devices.Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "description": device.description,
        "type": device.type,
        "memory_free_bytes": device.free_bytes,
        "memory_total_bytes": device.total_bytes,
    }

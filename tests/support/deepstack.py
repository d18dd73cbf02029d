"""Tiny models whose later layers read more of a picture's input than its embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from tests.support import architectures

# Layers 0 and 1 are stage I, 2 and 3 stage II. Qwen's layers add their rows one by one from the first on, Granite's
# those of a list: here in no order, one of them twice, and one of them in stage III.
KINDS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "qwen3vl-stage1": ("qwen3vl", lambda _: {"n_deepstack_layers": 2}),
    "qwen3vl-stage2": ("qwen3vl", lambda _: {"n_deepstack_layers": 3}),
    "qwen3vl-stage3": ("qwen3vl", lambda _: {"n_deepstack_layers": 5}),
    "qwen3vlmoe-stage2": ("qwen3vlmoe", lambda _: {"n_deepstack_layers": 3}),
    "granite": ("granite", lambda n_layer: {"deepstack_mapping": [-1, 3, 2, 2, -1, 1, *[-1] * n_layer][:n_layer]}),
}


def save(program: Path, kind: str, folder: Path) -> Path:
    """program: save-archs."""
    arch, keys = KINDS[kind]
    plain = folder / "plain"
    plain.mkdir()
    made = architectures.save(program, arch, plain)[0]
    path = folder / f"{kind}.gguf"
    reader = GGUFReader(made)
    n_layer = int(reader.fields[f"{arch}.block_count"].contents())
    new = {f"{arch}.{key}": value for key, value in keys(n_layer).items()}
    writer = GGUFWriter(path, arch)
    for name, field in reader.fields.items():
        is_given = name.startswith("GGUF.") or name in ("general.architecture", *new)
        if not is_given and field.contents() != []:  # which cannot be written
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for name, value in new.items():
        if isinstance(value, list):
            writer.add_key_value(name, value, GGUFValueType.ARRAY, GGUFValueType.INT32)
        else:
            writer.add_uint32(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

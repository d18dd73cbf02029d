"""A vision encoder's GGUF in another type: the matrices anew, all else copied."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from halfv_cpp import ggml_h
from halfv_cpp.tensor_types import BY_NUMBER, TENSOR_TYPES

from halfv_edge import files
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import UINT32, Metadata
from halfv_edge.gguf.write import rewriting

TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0")  # that an encoder may be made of
READABLE = {TENSOR_TYPES[name].ggml_type: name for name in ("f32", "f16", "bf16")}
ROWS_AT_ONCE = 256
# tables that are added or looked up, and kernels of convolutions
NO_MATRIX = ("position_embd", "patch_embd", "class_embd", "token_embd", "newline", "seperator", "query", "norm", "conv")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # as ggml counts: the length of a row first
    type: int
    offset: int

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[1:])


def retype(source: Metadata, target: Path, type_name: str, *, progress: bool = True) -> int:
    """Write `source` to `target` with its matrices in a type of TYPES; how many there were.

    A matrix whose rows are no whole blocks of that type stays as it is: it is padded when it is loaded.
    """
    if type_name not in TYPES:
        raise HalfVError(f"{type_name!r} is no type for an encoder's file: it must be one of {', '.join(TYPES)}.")
    if source.text("general.architecture") != "clip":
        raise HalfVError(f"{source.path} is not a vision encoder: give an mmproj GGUF.")
    tensors = list(tensors_of(source))
    if unknown := [tensor for tensor in tensors if tensor.type not in BY_NUMBER]:
        raise HalfVError(f"{source.path} has {unknown[0].name} in a type that llama.cpp does not have.")
    wanted = TENSOR_TYPES[type_name].ggml_type
    types = {tensor.name: wanted if _is_matrix(tensor, wanted) else tensor.type for tensor in tensors}
    changed = [tensor for tensor in tensors if types[tensor.name] != tensor.type]
    for tensor in changed:
        if tensor.type not in READABLE:
            raise HalfVError(
                f"{source.path} has {tensor.name} in a type that loses: give it in {', '.join(READABLE.values())}."
            )
    infos, total = infos_of(tensors, types, source.alignment)
    file_type = {"general.file_type": (UINT32, TENSOR_TYPES[type_name].ftype)}
    with rewriting(source, target, "general.file_type", file_type, infos, total, progress=progress) as (
        old,
        out,
        bar,
    ):
        for tensor in tensors:
            start = out.tell()
            old.seek(source.data + tensor.offset)
            for rows in _row_counts(tensor):
                raw = old.read(rows * BY_NUMBER[tensor.type].row_bytes(tensor.shape[0]))
                out.write(_converted(raw, tensor, rows, types[tensor.name]))
            bar.update(out.tell() - start)
            out.write(bytes(-(out.tell() - start) % source.alignment))
    return len(changed)


def _is_matrix(tensor: Tensor, wanted: int) -> bool:
    named = tensor.name.endswith(".weight") and not any(word in tensor.name for word in NO_MATRIX)
    return named and len(tensor.shape) == 2 and tensor.shape[0] % BY_NUMBER[wanted].block == 0


def tensors_of(source: Metadata) -> Iterator[Tensor]:
    with files.reading(source.path) as file:
        file.seek(source.infos)
        raw = file.read(source.infos_end - source.infos)
    at = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return values

    for _ in range(source.n_tensors):
        (length,) = take("Q")
        name = raw[at : at + length].decode("utf-8", "backslashreplace")
        at += length
        (n_dims,) = take("I")
        yield Tensor(name, take(f"{n_dims}Q"), *take("IQ"))


def infos_of(tensors: list[Tensor], types: dict[str, int], alignment: int) -> tuple[bytes, int]:
    """Their infos as bytes, and the size of all data."""
    infos, offset = b"", 0
    for tensor in tensors:
        name = tensor.name.encode()
        infos += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        infos += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, types[tensor.name], offset)
        size = BY_NUMBER[types[tensor.name]].row_bytes(tensor.shape[0]) * tensor.n_rows
        offset += size + -size % alignment
    return infos, offset


def _row_counts(tensor: Tensor) -> Iterator[int]:
    for start in range(0, tensor.n_rows, ROWS_AT_ONCE):
        yield min(ROWS_AT_ONCE, tensor.n_rows - start)


def _converted(raw: bytes, tensor: Tensor, rows: int, type_: int) -> bytes:
    if type_ == tensor.type:
        return raw
    n_row = tensor.shape[0]
    values = np.empty(rows * n_row, np.float32)
    pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if READABLE[tensor.type] == "f32":
        values[:] = np.frombuffer(raw, np.float32)
    elif READABLE[tensor.type] == "f16":
        values[:] = np.frombuffer(raw, np.float16)
    else:
        ggml_h.ggml_bf16_to_fp32_row(raw, pointer, values.size)
    out = ctypes.create_string_buffer(rows * BY_NUMBER[type_].row_bytes(n_row))
    ggml_h.ggml_quantize_chunk(type_, pointer, out, 0, rows, n_row, None)
    return out.raw

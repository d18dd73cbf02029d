"""A vision encoder's GGUF in another type: the matrices anew, all else copied."""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfv_edge import libs
from halfv_edge.errors import HalfVError
from halfv_edge.gguf import read as gguf_read
from halfv_edge.gguf import write as gguf_write
from halfv_edge.gguf.read import Metadata

# ggml's numbers
TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q6_k": 14, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}
FTYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q6_k": 18, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2}
READABLE = {TYPES[name]: name for name in ("f32", "f16", "bf16")}
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
    tensors = list(_tensors(source))
    wanted = TYPES[type_name]
    types = {tensor.name: wanted if _is_matrix(tensor, wanted) else tensor.type for tensor in tensors}
    changed = [tensor for tensor in tensors if types[tensor.name] != tensor.type]
    for tensor in changed:
        if tensor.type not in READABLE:
            raise HalfVError(
                f"{source.path} has {tensor.name} in a type that loses: give it in {', '.join(READABLE.values())}."
            )
    infos, total = _infos(tensors, types, source.alignment)
    file_type = {"general.file_type": (gguf_read.UINT32, FTYPES[type_name])}
    with gguf_write.rewriting(source, target, "general.file_type", file_type, infos, total, progress=progress) as (
        old,
        out,
        bar,
    ):
        for tensor in tensors:
            start = out.tell()
            old.seek(source.data + tensor.offset)
            for rows in _row_counts(tensor):
                raw = old.read(rows * _row_size(tensor.type, tensor.shape[0]))
                out.write(_converted(raw, tensor, rows, types[tensor.name]))
            bar.update(out.tell() - start)
            out.write(bytes(-(out.tell() - start) % source.alignment))
    return len(changed)


def _is_matrix(tensor: Tensor, wanted: int) -> bool:
    named = tensor.name.endswith(".weight") and not any(word in tensor.name for word in NO_MATRIX)
    return named and len(tensor.shape) == 2 and tensor.shape[0] % _ggml().ggml_blck_size(wanted) == 0


def _tensors(source: Metadata) -> Iterator[Tensor]:
    with gguf_read.reading(source.path) as file:
        file.seek(source.infos)
        raw = file.read(source.infos_end - source.infos)
    at = 0

    def take(form: str) -> tuple:
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


def _infos(tensors: list[Tensor], types: dict[str, int], alignment: int) -> tuple[bytes, int]:
    """Their infos as bytes, and the size of all data."""
    infos, offset = b"", 0
    for tensor in tensors:
        name = tensor.name.encode()
        infos += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        infos += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, types[tensor.name], offset)
        size = _row_size(types[tensor.name], tensor.shape[0]) * tensor.n_rows
        offset += size + -size % alignment
    return infos, offset


def _row_counts(tensor: Tensor) -> Iterator[int]:
    for start in range(0, tensor.n_rows, ROWS_AT_ONCE):
        yield min(ROWS_AT_ONCE, tensor.n_rows - start)


def _converted(raw: bytes, tensor: Tensor, rows: int, type_: int) -> bytes:
    if type_ == tensor.type:
        return raw
    ggml, n_row = _ggml(), tensor.shape[0]
    values = np.empty(rows * n_row, np.float32)
    pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if READABLE[tensor.type] == "f32":
        values[:] = np.frombuffer(raw, np.float32)
    elif READABLE[tensor.type] == "f16":
        values[:] = np.frombuffer(raw, np.float16)
    else:
        ggml.ggml_bf16_to_fp32_row(raw, pointer, values.size)
    out = ctypes.create_string_buffer(rows * _row_size(type_, n_row))
    ggml.ggml_quantize_chunk(type_, pointer, out, 0, rows, n_row, None)
    return out.raw


def _row_size(type_: int, n: int) -> int:
    return _ggml().ggml_row_size(type_, n)


@functools.cache
def _ggml() -> ctypes.CDLL:
    ggml = ctypes.CDLL(str(libs.library_path("ggml-base")))
    floats, size, count = ctypes.POINTER(ctypes.c_float), ctypes.c_size_t, ctypes.c_int64
    for name, result, arguments in (
        ("ggml_blck_size", count, (ctypes.c_int,)),
        ("ggml_row_size", size, (ctypes.c_int, count)),
        ("ggml_bf16_to_fp32_row", None, (ctypes.c_char_p, floats, count)),
        ("ggml_quantize_chunk", size, (ctypes.c_int, floats, ctypes.c_char_p, count, count, count, floats)),
    ):
        function: Callable = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml

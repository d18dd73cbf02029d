"""A twig's GGUF: the first layers of a model, a few more behind them, a norm and a head, as an ordinary model."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from halfv_cpp import ggml_h
from halfv_cpp.tensor_types import BY_NUMBER, TENSOR_TYPES

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.mmproj import Tensor, infos_of, tensors_of
from halfv_edge.gguf.read import ARRAY, UINT32, Metadata
from halfv_edge.gguf.write import rewriting

ARCHITECTURES = ("llama", "qwen2", "qwen2vl", "qwen3", "qwen3vl")  # whose layers are alike, and named so
AFTER = "twig.layer"  # of its own layers the first: as many are the model's
OF_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# a list of these has an entry for each layer
BY_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
# of other types some cannot be made without knowing what matters
TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q5_1", "q5_0", "q4_1", "q4_0")
ELSE_TYPE = "q8_0"
ROWS_AT_ONCE = 1024

Weights = npt.NDArray[np.float32]
Trained = Mapping[str, Callable[[], Weights]]  # by the tensor's name in the new file


@dataclass(frozen=True, slots=True)
class Shape:
    """What a twig has of a model."""

    after: int  # layers of the model
    layers: int  # of its own

    def check(self, base: Metadata) -> None:
        """Whether this model can have it."""
        architecture = base.text("general.architecture")
        if architecture not in ARCHITECTURES:
            raise HalfVError(
                f"{base.path} is of the architecture {architecture!r}: twigs are made for {', '.join(ARCHITECTURES)}."
            )
        if base.value("split.count") not in (None, 0, 1):
            raise HalfVError(f"{base.path} is a part of a model in several files: join them with llama-gguf-split.")
        n_layer = base.value(f"{architecture}.block_count")
        if not isinstance(n_layer, int) or self.after + self.layers > n_layer:
            raise HalfVError(
                f"A twig of {self.layers} layers behind the first {self.after} of {base.path} is not possible: that "
                f"model has {n_layer} layers."
            )


def tensors_needed(base: Metadata, shape: Shape) -> dict[str, Tensor]:
    """The tensors of the new file, in its order, as the base has them at the same place."""
    found = {}
    for tensor in tensors_of(base):
        if tensor.type not in BY_NUMBER:
            raise HalfVError(f"{base.path} has {tensor.name} in a type that llama.cpp does not have.")
        of_layer = OF_LAYER.fullmatch(tensor.name)
        if not of_layer or int(of_layer[1]) < shape.after + shape.layers:
            found[tensor.name] = tensor
    return found


def write_twig(
    base: Metadata, target: Path, shape: Shape, trained: Trained | None = None, *, progress: bool = True
) -> None:
    """Write a twig of `base`: with what was trained, else with the base's own layers, norm and head in its place.

    What was trained gets the type that the base's tensor at that place has.
    """
    shape.check(base)
    trained = trained or {}
    needed = tensors_needed(base, shape)
    tensors = [_retyped(tensor) if name in trained else tensor for name, tensor in needed.items()]
    if "output.weight" in trained and "output.weight" not in needed:  # the base's head is its embedding
        tensors.append(_retyped(needed["token_embd.weight"], "output.weight"))
    infos, total = infos_of(tensors, {tensor.name: tensor.type for tensor in tensors}, base.alignment)
    new = _keys(base, shape)
    with rewriting(base, target, "halfv.", new, infos, total, n_tensors=len(tensors), progress=progress) as (
        old,
        out,
        bar,
    ):
        for tensor in tensors:
            start = out.tell()
            if tensor.name in trained:
                _write(trained[tensor.name](), tensor, out)
            else:
                old.seek(base.data + tensor.offset)
                out.write(old.read(BY_NUMBER[tensor.type].row_bytes(tensor.shape[0]) * tensor.n_rows))
            bar.update(out.tell() - start)
            out.write(bytes(-(out.tell() - start) % base.alignment))


def _retyped(tensor: Tensor, name: str = "") -> Tensor:
    name, types = name or tensor.name, {TENSOR_TYPES[each].ggml_type for each in TYPES}
    kind = tensor.type if tensor.type in types else TENSOR_TYPES[ELSE_TYPE].ggml_type
    return Tensor(name, tensor.shape, kind, 0)


def _keys(base: Metadata, shape: Shape) -> dict[str, tuple[int, Any]]:
    architecture, n_layer = base.text("general.architecture"), shape.after + shape.layers
    new: dict[str, tuple[int, Any]] = {f"{architecture}.block_count": (UINT32, n_layer), AFTER: (UINT32, shape.after)}
    for name in BY_LAYER:
        value = base.value(f"{architecture}.{name}")
        if isinstance(value, list):
            new[f"{architecture}.{name}"] = ARRAY, value[:n_layer]
    return new


def _write(weights: Weights, tensor: Tensor, out: BinaryIO) -> None:
    """In the tensor's type."""
    kind, rows = BY_NUMBER[tensor.type], np.ascontiguousarray(weights, np.float32).reshape(tensor.n_rows, -1)
    for start in range(0, tensor.n_rows, ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        raw = ctypes.create_string_buffer(len(part) * kind.row_bytes(tensor.shape[0]))
        pointer = part.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        ggml_h.ggml_quantize_chunk(tensor.type, pointer, raw, 0, len(part), tensor.shape[0], None)
        out.write(raw.raw)

"""Channels and heads in another order: the same model, with those first that pictures use most."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from halfv_cpp.tensor_types import BY_NUMBER, TENSOR_TYPES

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.mmproj import Tensor, tensors_of
from halfv_edge.gguf.read import Metadata
from halfv_edge.gguf.write import rewriting

Order = npt.NDArray[np.int64]
Use = npt.NDArray[np.floating[Any]]
PART = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.(weight|bias)")
HEADS = re.compile(r"blk\.(\d+)\.attn_(q|k|v|output)\.(weight|bias)")
MATRICES = {f"attn_{name}.weight" for name in ("q", "k", "v", "output")}
OF_HEADS = MATRICES | {f"attn_{name}.bias" for name in ("q", "k", "v", "output")}
OF_HEADS |= {f"attn_{name}norm.weight" for name in ("", "q_", "k_")}
# what else of a layer may be named like that and has nothing of its channels
APART = re.compile(r"blk\.\d+\.(ffn_(norm|post_norm)\.(weight|bias)|(?!ffn_).*)")


@dataclass(frozen=True, slots=True)
class Parts:
    """What can change places in a layer: channels of its feed-forward network, or groups of its heads."""

    count: int
    block: int  # how many stay together, as the type of the matrix that takes them has it


def networks(source: Metadata) -> dict[int, Parts]:
    """Channels of those networks whose channels can change places, by layer."""
    found: dict[int, Parts] = {}
    n_rows: dict[int, set[int]] = {}
    for tensor in tensors_of(source):
        part = PART.fullmatch(tensor.name)
        if not part:
            if tensor.name.startswith("blk.") and not APART.fullmatch(tensor.name):
                raise HalfVError(f"{source.path} has {tensor.name}, so its channels stay where they are.")
            continue
        layer, which, kind = int(part[1]), part[2], part[3]
        if which == "down" and kind == "weight":
            found[layer] = Parts(tensor.shape[0], BY_NUMBER[tensor.type].block)
        elif which != "down":
            n_rows.setdefault(layer, set()).add(tensor.shape[-1])
    for layer, network in found.items():
        if n_rows.get(layer) != {network.count}:
            raise HalfVError(f"{source.path}: the matrices of layer {layer} do not have the same channels.")
    return found


def head_groups(source: Metadata) -> dict[int, Parts]:
    """Heads that share keys and values, of the layers in which such groups can change places."""
    prefix = f"{source.text('general.architecture')}.attention.head_count"
    count = source.value(f"{prefix}_kv") if f"{prefix}_kv" in source.entries else source.value(prefix)
    if not isinstance(count, int) or count < 2:
        return {}
    layers: dict[int, dict[str, Tensor]] = {}
    for tensor in tensors_of(source):
        if found := re.fullmatch(r"blk\.(\d+)\.(attn_.*)", tensor.name):
            layers.setdefault(int(found[1]), {})[found[2]] = tensor
    groups = {}
    for layer, tensors in layers.items():
        if tensors.keys() - OF_HEADS or not tensors.keys() >= MATRICES:
            continue
        rows = {name: tensors[f"attn_{name}.weight"].shape[1] for name in "qkv"}
        output = tensors["attn_output.weight"]
        norms = [tensors[name].shape[0] for name in ("attn_q_norm.weight", "attn_k_norm.weight") if name in tensors]
        if any(n % count for n in (*rows.values(), output.shape[0])) or any(n != rows["k"] // count for n in norms):
            continue
        together = _together(output, count)
        if count % together == 0:
            groups[layer] = Parts(count, together)
    return groups


def _together(output: Tensor, groups: int) -> int:
    """Groups of heads whose columns of the output matrix share a block of its type."""
    block = BY_NUMBER[output.type].block
    return block // math.gcd(block, output.shape[0] // groups)


def by_use(use: Use, parts: Parts) -> Order:
    """By falling use, which may be that of what the parts consist of; in blocks where parts have to stay together."""
    of_blocks = use.reshape(parts.count // parts.block, -1).sum(axis=1)
    first = np.argsort(-of_blocks, kind="stable") * parts.block
    order: Order = (first[:, None] + np.arange(parts.block)).reshape(-1)
    return order


def reorder(
    source: Metadata,
    orders: Mapping[int, Order],
    target: Path,
    *,
    heads: Mapping[int, Order] = MappingProxyType({}),
    progress: bool = True,
) -> None:
    """Write `source` to `target` with channels and groups of heads of these layers in this order, all else as it is."""
    with rewriting(source, target, "\0", {}, progress=progress) as (old, out, bar):
        begin = out.tell()
        for tensor in sorted(tensors_of(source), key=lambda each: each.offset):
            out.write(bytes(begin + tensor.offset - out.tell()))
            old.seek(source.data + tensor.offset)
            raw = old.read(BY_NUMBER[tensor.type].row_bytes(tensor.shape[0]) * tensor.n_rows)
            out.write(_ordered(_heads_ordered(raw, tensor, heads), tensor, orders))
            bar.update(len(raw))
        out.write(bytes(source.size - source.data - (out.tell() - begin)))


def _ordered(raw: bytes, tensor: Tensor, orders: Mapping[int, Order]) -> bytes:
    part = PART.fullmatch(tensor.name)
    order = orders.get(int(part[1])) if part else None
    if not part or order is None or part.group(2, 3) == ("down", "bias"):
        return raw
    kind = BY_NUMBER[tensor.type]
    if part[2] == "down":  # channels are the places of each row
        blocks = np.frombuffer(raw, np.uint8).reshape(tensor.n_rows, -1, kind.block_bytes)
        return blocks[:, order[:: kind.block] // kind.block].tobytes()
    rows = np.frombuffer(raw, np.uint8).reshape(len(order), -1)
    return rows[order].tobytes()


def _heads_ordered(raw: bytes, tensor: Tensor, heads: Mapping[int, Order]) -> bytes:
    part = HEADS.fullmatch(tensor.name)
    order = heads.get(int(part[1])) if part else None
    if not part or order is None or part.group(2, 3) == ("output", "bias"):
        return raw
    groups = len(order)
    if part[2] != "output":  # rows that follow each other
        return np.frombuffer(raw, np.uint8).reshape(groups, -1)[order].tobytes()
    together = _together(tensor, groups)
    columns = np.frombuffer(raw, np.uint8).reshape(tensor.n_rows, groups // together, -1)
    return columns[:, order[::together] // together].tobytes()


def uses_of(heard: Mapping[int, Use], source: Metadata, matrix: str) -> dict[int, Use]:
    """What channels or heads say in each layer, times how loudly the next matrix says it, where that can be read."""
    readable = {TENSOR_TYPES["f32"].ggml_type: np.float32, TENSOR_TYPES["f16"].ggml_type: np.float16}
    loud = dict(heard)
    with source.path.open("rb") as file:
        for tensor in tensors_of(source):
            found = re.fullmatch(rf"blk\.(\d+)\.{matrix}\.weight", tensor.name)
            if found and int(found[1]) in heard and tensor.type in readable:
                file.seek(source.data + tensor.offset)
                raw = file.read(BY_NUMBER[tensor.type].row_bytes(tensor.shape[0]) * tensor.n_rows)
                columns = np.frombuffer(raw, readable[tensor.type]).reshape(tensor.n_rows, -1).astype(np.float64)
                loud[int(found[1])] = heard[int(found[1])] * np.linalg.norm(columns, axis=0)
    return loud

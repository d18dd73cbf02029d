"""The channels of feed-forward networks in another order: the same model, with those first that pictures use most."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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
# what else of a layer may be named like that and has nothing of its channels
APART = re.compile(r"blk\.\d+\.(ffn_(norm|post_norm)\.(weight|bias)|(?!ffn_).*)")


@dataclass(frozen=True, slots=True)
class Network:
    """The feed-forward network of a layer."""

    n_channels: int
    block: int  # channels that stay together, as the type of its last matrix has it


def networks(source: Metadata) -> dict[int, Network]:
    """Those whose channels can change places, by layer."""
    found: dict[int, Network] = {}
    n_rows: dict[int, set[int]] = {}
    for tensor in tensors_of(source):
        part = PART.fullmatch(tensor.name)
        if not part:
            if tensor.name.startswith("blk.") and not APART.fullmatch(tensor.name):
                raise HalfVError(f"{source.path} has {tensor.name}, so its channels stay where they are.")
            continue
        layer, which, kind = int(part[1]), part[2], part[3]
        if which == "down" and kind == "weight":
            found[layer] = Network(tensor.shape[0], BY_NUMBER[tensor.type].block)
        elif which != "down":
            n_rows.setdefault(layer, set()).add(tensor.shape[-1])
    for layer, network in found.items():
        if n_rows.get(layer) != {network.n_channels}:
            raise HalfVError(f"{source.path}: the matrices of layer {layer} do not have the same channels.")
    return found


def by_use(use: Use, network: Network) -> Order:
    """Channels by falling use; blocks of them where they have to stay together."""
    of_blocks = use.reshape(-1, network.block).sum(axis=1)
    first = np.argsort(-of_blocks, kind="stable") * network.block
    order: Order = (first[:, None] + np.arange(network.block)).reshape(-1)
    return order


def reorder(source: Metadata, orders: Mapping[int, Order], target: Path, *, progress: bool = True) -> None:
    """Write `source` to `target` with the channels of these layers in this order; all else is copied."""
    with rewriting(source, target, "\0", {}, progress=progress) as (old, out, bar):
        begin = out.tell()
        for tensor in sorted(tensors_of(source), key=lambda each: each.offset):
            out.write(bytes(begin + tensor.offset - out.tell()))
            old.seek(source.data + tensor.offset)
            raw = old.read(BY_NUMBER[tensor.type].row_bytes(tensor.shape[0]) * tensor.n_rows)
            out.write(_ordered(raw, tensor, orders))
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


def use_of(use: Use, source: Metadata, layer: int) -> Use:
    """What channels say, times how loudly the last matrix says it on; where its type can be read."""
    readable = {TENSOR_TYPES["f32"].ggml_type: np.float32, TENSOR_TYPES["f16"].ggml_type: np.float16}
    for tensor in tensors_of(source):
        kind = BY_NUMBER[tensor.type]
        if tensor.name == f"blk.{layer}.ffn_down.weight" and tensor.type in readable:
            with source.path.open("rb") as file:
                file.seek(source.data + tensor.offset)
                raw = file.read(kind.row_bytes(tensor.shape[0]) * tensor.n_rows)
            matrix = np.frombuffer(raw, readable[tensor.type]).reshape(tensor.n_rows, -1)
            loud: Use = use * np.linalg.norm(matrix.astype(np.float64), axis=0)
            return loud
    return use

"""A trained twig, as TwigVLM publishes it, to a GGUF of its own.

Its model.safetensors has the names of a Hugging Face language model whose layers count from 0: those of the twig alone,
with `model.norm` and `lm_head`. It has no embedding, and nothing of the model that it grew on.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from halfv_convert.checkpoint import Placed, placed_tensors
from halfv_edge.errors import HalfVError
from halfv_edge.gguf import twig
from halfv_edge.gguf.mmproj import Tensor
from halfv_edge.gguf.read import Metadata, read_metadata

FILE = "model.safetensors"
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
UNUSED = re.compile(r".*rotary_emb\.inv_freq")
LAYER = re.compile(r"model\.layers\.(\d+)\..+")
NEIGHBOURS = "llama"  # llama.cpp rotates neighbours there, where the checkpoint's halves of a head are rotated


def convert_twig(base: Path, weights: Path, target: Path, *, after: int = 2, progress: bool = True) -> twig.Shape:
    """Write a twig that was trained behind the first layers of the model `base`; what it has."""
    about, path = read_metadata(base), weights / FILE if weights.is_dir() else weights
    _check_target(target, about)
    tensors = {name: found for name, found in placed_tensors(path).items() if not UNUSED.fullmatch(name)}
    shape = twig.Shape(after, _count_layers(path, tensors))
    shape.check(about)
    wanted = _wanted(about, shape)
    for name, tensor in wanted.items():
        _check(path, name, tensor, tensors)
    if more := sorted(tensors.keys() - wanted.keys()):
        raise HalfVError(f"{path} has {more[0]}, for which a twig of {base} has no use.")
    trained = {
        tensor.name: partial(_read, path, tensors[name], _groups(about, tensor.name)) for name, tensor in wanted.items()
    }
    twig.write_twig(about, target, shape, trained, progress=progress)
    return shape


def untrained_twig(base: Path, target: Path, *, after: int = 2, layers: int = 3, progress: bool = True) -> twig.Shape:
    """Write what training begins with: the layers that follow in the model, its norm and its head."""
    about, shape = read_metadata(base), twig.Shape(after, layers)
    _check_target(target, about)
    twig.write_twig(about, target, shape, progress=progress)
    return shape


def _check_target(target: Path, base: Metadata) -> None:
    if target.resolve() == base.path.resolve():
        raise HalfVError(f"{target} is the model itself: give another file.")


def _count_layers(path: Path, tensors: dict[str, Placed]) -> int:
    numbers = {int(found[1]) for name in tensors if (found := LAYER.fullmatch(name))}
    if not numbers or numbers != set(range(len(numbers))):
        raise HalfVError(f"{path} has no layers model.layers.0 and on: it is not the file of a twig.")
    return len(numbers)


def _wanted(base: Metadata, shape: twig.Shape) -> dict[str, Tensor]:
    """By their names in the checkpoint, tensors as the new file has them."""
    wanted = {}
    needed = twig.tensors_needed(base, shape)
    head = needed.get("output.weight", needed.get("token_embd.weight"))
    if head and "output_norm.weight" in needed:
        wanted[OUTSIDE["output_norm.weight"]] = needed["output_norm.weight"]
        wanted[OUTSIDE["output.weight"]] = Tensor("output.weight", head.shape, head.type, 0)
    for tensor in needed.values():
        of_layer = twig.OF_LAYER.fullmatch(tensor.name)
        if of_layer and (number := int(of_layer[1])) >= shape.after:
            part, _, kind = of_layer[2].rpartition(".")
            if part not in NAMES:
                raise HalfVError(f"{base.path} has {tensor.name}, which a twig of TwigVLM's kind has not.")
            wanted[f"model.layers.{number - shape.after}.{NAMES[part]}.{kind}"] = tensor
    return wanted


def _check(path: Path, name: str, tensor: Tensor, tensors: dict[str, Placed]) -> None:
    if name not in tensors:
        raise HalfVError(f"{path} has no {name}: it is not the twig of such a model, or not complete.")
    shape = tuple(reversed(tensor.shape))
    if tensors[name].shape != shape:
        raise HalfVError(f"{path} has {name} of {list(tensors[name].shape)}, and this model's is of {list(shape)}.")
    if tensors[name].dtype not in ("F32", "F16", "BF16"):
        raise HalfVError(f"{path} has {name} as {tensors[name].dtype}: F32, F16 or BF16 can be read.")


def _groups(base: Metadata, name: str) -> int:
    """Heads whose rows change places, 0 for none."""
    prefix = f"{NEIGHBOURS}.attention.head_count"
    if base.text("general.architecture") != NEIGHBOURS or not re.fullmatch(r"blk\.\d+\.attn_[qk]\..+", name):
        return 0
    count = base.value(f"{prefix}_kv") if ".attn_k." in name and f"{prefix}_kv" in base.entries else base.value(prefix)
    if not isinstance(count, int):
        raise HalfVError(f"{base.path} has {prefix} = {count!r}: one number is needed.")
    return count


def _read(path: Path, tensor: Placed, groups: int) -> twig.Weights:
    with path.open("rb") as file:
        file.seek(tensor.start)
        raw = file.read(tensor.end - tensor.start)
    if len(raw) != tensor.end - tensor.start:
        raise HalfVError(f"{path} changed while it was read: try again.")
    if tensor.dtype == "BF16":
        values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, np.float32 if tensor.dtype == "F32" else np.float16).astype(np.float32)
    values = values.reshape(tensor.shape)
    if groups:
        halves = values.reshape(groups, 2, -1, *tensor.shape[1:])
        values = halves.swapaxes(1, 2).reshape(tensor.shape)
    return values

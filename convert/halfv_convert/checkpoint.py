"""What a checkpoint folder holds, looked at before any work begins: most mistakes show in the files' first bytes."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfv_edge import files
from halfv_edge.errors import HalfVError

# Whether llama.cpp's converter knows an architecture is asked of it, in the worker. These it would take, and wrongly.
OWN_LAYOUTS = {
    "LlavaLlamaForCausalLM": "this is the layout of the authors' own code: take the checkpoint of llava-hf",
    "LlavaMistralForCausalLM": "this is the layout of the authors' own code: take the checkpoint of llava-hf",
}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
MAX_HEADER_BYTES = 100 << 20  # as the safetensors library has it


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a tensor lies in its file."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    name: str
    architecture: str
    n_weights: int  # about, when the weights are not safetensors


def read(folder: Path) -> Checkpoint:
    """A checkpoint that is complete, as far as its files' headers tell."""
    if not folder.exists():
        raise HalfVError(f"{folder} does not exist: name the folder of a Hugging Face checkpoint.")
    if not folder.is_dir():
        hint = "for a GGUF there is `halfv profile add`" if folder.suffix == ".gguf" else "name its folder"
        raise HalfVError(f"{folder} is a file and not the folder of a Hugging Face checkpoint: {hint}.")
    config = _read_json(folder, "config.json", "it is not a Hugging Face checkpoint, or the download is not complete")
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if not isinstance(architecture, str) or architecture in OWN_LAYOUTS:
        hint = OWN_LAYOUTS.get(str(architecture), "config.json has to name one in `architectures`")
        raise HalfVError(f"{folder} holds {architecture!r}, which is not a model that halfv converts: {hint}.")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise HalfVError(f"{folder} has no tokenizer (none of {', '.join(TOKENIZERS)}): download its files too.")
    _check_processor(folder)
    return Checkpoint(folder, folder.resolve().name, architecture, _count_weights(folder))


def _read_json(folder: Path, name: str, missing: str) -> dict[str, Any]:
    path = folder / name
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HalfVError(f"{folder} has no {name}: {missing}.") from None
    except OSError as error:
        raise HalfVError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise HalfVError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise HalfVError(f"{path} is not a JSON object.")
    return value


def _check_processor(folder: Path) -> None:
    found = [name for name in PROCESSORS if (folder / name).is_file()]
    values: dict[str, Any] = {}
    for name in found:
        config = _read_json(folder, name, "")
        nested = config.get("image_processor")
        values |= config | (nested if isinstance(nested, dict) else {})
    if not found:
        raise HalfVError(f"{folder} has no {' or '.join(PROCESSORS)}: download it, pictures cannot be read without it.")
    for key in ("image_mean", "image_std"):
        value = values.get(key)
        if not isinstance(value, list) or len(value) != 3:
            raise HalfVError(f"{folder / found[-1]} has {key} = {value!r}: three numbers are needed.")


# --- weights ---


def tensor_names(folder: Path) -> set[str]:
    """Of a checkpoint's safetensors files; none when it has others."""
    return {name for path in folder.glob("model*.safetensors") for name in _read_shapes(path)}


def _count_weights(folder: Path) -> int:
    index = "model.safetensors.index.json"
    if (folder / index).is_file():
        placed = _read_json(folder, index, "").get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise HalfVError(f"{folder / index} has no weight_map: download it again.")
        shards = sorted(set(placed.values()))
        for shard in shards:
            if not (folder / shard).is_file():
                there = sum((folder / name).is_file() for name in shards)
                raise HalfVError(f"{folder} has {there} of {len(shards)} shards: {shard} is missing, download it.")
        shapes = {shard: _read_shapes(folder / shard) for shard in shards}
        for name, shard in placed.items():
            if name not in shapes[shard]:
                raise HalfVError(f"{folder / shard} has no tensor {name}, which {index} places there: download both.")
        return sum(math.prod(shapes[shard][name]) for name, shard in placed.items())

    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return sum(math.prod(shape) for path in files for shape in _read_shapes(path).values())
    files = sorted(folder.glob("pytorch_model*.bin"))
    if files:
        return sum(path.stat().st_size for path in files) // 2
    raise HalfVError(f"{folder} has no weights (model*.safetensors): download them, or check the path.")


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in placed_tensors(path).items()}


def placed_tensors(path: Path) -> dict[str, Placed]:
    """Each tensor of a safetensors file, of which every byte must be there."""
    with files.reading(path) as file:
        size = path.stat().st_size
        start = file.read(8)
        if start == b"version ":
            raise HalfVError(f"{path} is a Git LFS pointer and not the weights: run `git lfs pull` in its folder.")
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise HalfVError(f"{path} is not a safetensors file, or damaged: its header cannot be {length} bytes long.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            return {name: _checked(path, name, entry, size, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HalfVError(f"{path} is damaged: its header cannot be read ({error}). Download it again.") from error


def _checked(path: Path, name: str, entry: dict[str, Any], size: int, data: int) -> Placed:
    shape = tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"the shape or place of {name}")
    bits = DTYPE_BITS.get(entry["dtype"])
    if bits and (end - start) * 8 != math.prod(shape) * bits:
        raise HalfVError(f"{path} is damaged: {end - start} bytes for {name} of {list(shape)}. Download it again.")
    if data + end > size:
        raise HalfVError(f"{path} is cut short: {name} ends at byte {end} of {size - data}. Download it again.")
    return Placed(shape, entry["dtype"], data + start, data + end)

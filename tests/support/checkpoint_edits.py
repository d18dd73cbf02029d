"""Changes to a checkpoint on the disk, and values of what was converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
from safetensors.torch import load_file, save_file

from halfv_edge.profile.profile import Profile
from tests.support import tiny_tokenizers

MINE = Profile(1, 0.5, 0.2, 3, 0.0, "frozen", 8)


def read(path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(path)


def value(path: Path, key: str) -> Any:
    field = read(path).get_field(key)
    return field and field.contents()


# --- the same files from other layouts ---


def published_llava(folder: Path) -> None:
    """As llava-hf has it: older names, shards, and little in text_config."""
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    (folder / "model.safetensors").unlink()
    shards = [dict(list(weights.items())[half::2]) for half in (0, 1)]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, {"format": "pt"})
    index = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    tiny_tokenizers.write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text |= {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    del text["rope_parameters"], text["head_dim"], text["num_key_value_heads"]
    tiny_tokenizers.write_json(folder / "config.json", config)


def rename(folder: Path, name: Callable[[str], str]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name(old): weight for old, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil

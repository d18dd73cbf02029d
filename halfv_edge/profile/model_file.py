"""What a profile needs to know of a language model's GGUF."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from halfv_edge.errors import HalfVError, quote
from halfv_edge.gguf.read import Metadata, read_metadata


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a profile needs to know of a language model's GGUF."""

    path: Path
    architecture: str
    names: tuple[str, ...]  # general.name and general.basename, where given
    n_layer: int
    metadata: Metadata

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ModelFile:
        metadata = read_metadata(path)
        path = metadata.path
        architecture = metadata.text("general.architecture")
        if not architecture:
            raise HalfVError(f"{path} has no general.architecture: a profile belongs in a language model's GGUF.")
        kind = metadata.text("general.type")
        if architecture == "clip" or kind in ("mmproj", "adapter"):
            what = "a vision projector" if kind != "adapter" else "an adapter"
            raise HalfVError(f"{path} is {what}: a profile belongs in the language model's GGUF.")
        if _integer(metadata, "split.no"):
            raise HalfVError(f"{path} is a later part of a split model: a profile belongs in its first part.")
        n_layer = _integer(metadata, f"{architecture}.block_count")
        if not n_layer:
            raise HalfVError(f"{path} does not say how many layers it has ({quote(architecture)}.block_count).")
        names = tuple(filter(None, map(metadata.text, ("general.name", "general.basename"))))
        return cls(path, architecture, names, n_layer, metadata)


def _integer(metadata: Metadata, key: str) -> int:
    return metadata.value(key) if key in metadata.entries and metadata.type_name(key)[0] in "ui" else 0

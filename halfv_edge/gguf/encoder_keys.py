"""What the file of a vision encoder says of itself."""

from __future__ import annotations

from halfv_edge.gguf.read import Metadata

# Encoders of pictures of any size, from which libmtmd keeps patches that their neighbours predict.
PATCHWISE = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger")
LLAMA_CPP_LIMIT = 4096  # visual tokens of a picture, that llama.cpp gives these encoders
MERGE = 2  # unless the file says otherwise


def projector(metadata: Metadata) -> str:
    return metadata.text("clip.projector_type") or metadata.text("clip.vision.projector_type")


def merge(metadata: Metadata) -> int:
    """Patches of a token, along a side."""
    return int(metadata.value("clip.vision.spatial_merge_size") or MERGE)


def token_side(metadata: Metadata) -> int:
    """Pixels of a token, along a side, where the encoder takes pictures of any size; else 0."""
    if projector(metadata) not in PATCHWISE:
        return 0
    patch = int(metadata.value("clip.vision.patch_size") or 0)
    return patch * merge(metadata)


def token_limit(metadata: Metadata) -> int | None:
    """Visual tokens at most, by `clip.vision.image_max_pixels`; None where llama.cpp sees to it, or nothing is said.

    llama.cpp reads that key for other encoders, and gives these 4096 tokens whatever they were trained for.
    """
    pixels, side = metadata.value("clip.vision.image_max_pixels"), token_side(metadata)
    if not pixels or not side:
        return None
    limit = pixels // side**2
    return limit if 0 < limit < LLAMA_CPP_LIMIT else None

"""Random vision encoders: GGUFs that the pinned clip loader runs, seeded, for the models of tiny_models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

KINDS = ("llava", "llava-next", "qwen2vl")
PATCH = 14
IMAGE_SIZE = 140  # 100 tokens for llava; for qwen2vl only a hint
TILES = (140, 280, 280, 140, 280, 280)  # width, height of each resolution that llava-next may choose


def make_tiny_mmproj(
    path: str | Path, kind: str, *, n_embd: int, seed: int = 0, n_vision: int = 32, n_layer: int = 3, n_head: int = 2
) -> Path:
    """Write a random encoder for language models of `n_embd` and return its path.

    llava: a fixed square of 100 tokens. llava-next: the same in tiles and an overview. qwen2vl: one token per 28 x 28
    pixels of whatever size the picture has, placed with M-RoPE.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind '{kind}'; known: {', '.join(KINDS)}")
    is_qwen = kind == "qwen2vl"
    meta: dict[str, Any] = {
        "general.name": f"tiny-{kind}-{seed}",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "qwen2vl_merger" if is_qwen else "mlp",
        "clip.use_gelu": True,
        "clip.vision.embedding_length": n_vision,
        "clip.vision.feed_forward_length": 2 * n_vision,
        "clip.vision.block_count": n_layer,
        "clip.vision.projection_dim": n_embd,
        "clip.vision.attention.head_count": n_head,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_size": IMAGE_SIZE,
        "clip.vision.patch_size": PATCH,
        "clip.vision.image_mean": [0.48, 0.46, 0.41],
        "clip.vision.image_std": [0.27, 0.26, 0.28],
    }
    if kind == "llava-next":
        meta["clip.vision.image_grid_pinpoints"] = list(TILES)

    # name: shape, deviation; None is a norm's weight
    n_ff = 2 * n_vision
    plan: dict[str, tuple[tuple[int, ...], float | None]] = {
        "v.patch_embd.weight": ((n_vision, 3, PATCH, PATCH), 2.0),
    }
    if is_qwen:
        plan["v.patch_embd.weight.1"] = ((n_vision, 3, PATCH, PATCH), 2.0)
        merged = 4 * n_vision
        plan |= _linear("mm.0", merged, merged) | _linear("mm.2", n_embd, merged)
        plan |= _norm("v.post_ln", n_vision)
    else:
        n_positions = (IMAGE_SIZE // PATCH) ** 2 + 1
        plan["v.class_embd"] = ((n_vision,), 1.0)
        plan["v.position_embd.weight"] = ((n_positions, n_vision), 1.0)
        plan |= _norm("v.pre_ln", n_vision)
        plan |= _linear("mm.0", n_embd, n_vision) | _linear("mm.2", n_embd, n_embd)
    for layer in range(n_layer):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            plan |= _linear(f"{block}.{name}", n_vision, n_vision)
        plan |= _linear(f"{block}.ffn_up", n_ff, n_vision) | _linear(f"{block}.ffn_down", n_vision, n_ff)
        plan |= _norm(f"{block}.ln1", n_vision) | _norm(f"{block}.ln2", n_vision)
    return _write(Path(path), meta, plan, seed)


def _linear(name: str, n_out: int, n_in: int) -> dict[str, tuple[tuple[int, ...], float | None]]:
    return {f"{name}.weight": ((n_out, n_in), 1.0), f"{name}.bias": ((n_out,), 0.1)}


def _norm(name: str, n: int) -> dict[str, tuple[tuple[int, ...], float | None]]:
    return {f"{name}.weight": ((n,), None), f"{name}.bias": ((n,), 0.1)}


def _write(path: Path, meta: dict[str, Any], plan: dict[str, tuple[tuple[int, ...], float | None]], seed: int) -> Path:
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "clip")
    for key, value in meta.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for index, (name, (shape, deviation)) in enumerate(plan.items()):
        rng = np.random.default_rng((seed, index))
        n_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = (
            rng.uniform(0.6, 1.6, shape) if deviation is None else rng.standard_normal(shape) * deviation / n_in**0.5
        )
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path

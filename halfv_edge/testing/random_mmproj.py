"""Random vision encoders: GGUFs that the pinned clip loader runs, seeded, for the models of random_models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

PROJECTORS = {
    "llava": "mlp",
    "llava-next": "mlp",
    "qwen2vl": "qwen2vl_merger",
    "qwen2.5vl": "qwen2.5vl_merger",
    "qwen3vl": "qwen3vl_merger",
    "qwen3.5vl": "qwen3vl_merger",
    "gemma3": "gemma3",
}
BLOCK = 1 << 20  # elements generated before a tensor starts to repeat
WINDOW, FULL_EVERY = 112, 8  # of Qwen2.5-VL: pixels of a window, and which layers see everything
FTYPES = {name: GGMLQuantizationType[name.upper()] for name in ("f32", "f16")}

Plan = dict[str, tuple[tuple[int, ...], float | None]]  # name: shape, deviation; None is a norm's weight


def write_mmproj(
    path: str | Path,
    kind: str,
    *,
    n_embd: int,
    seed: int = 0,
    n_vision: int = 32,
    n_layer: int = 3,
    n_head: int = 2,
    n_ff: int | None = None,
    image_size: int = 140,
    patch: int = 14,
    pinpoints: tuple[int, ...] = (),
    ftype: str = "f32",
) -> Path:
    """Write a random encoder for language models of `n_embd` and return its path.

    llava: a fixed square of (image_size / patch)^2 tokens. llava-next: the same in tiles and an overview; pinpoints are
    width, height of each resolution that it may choose. qwen2vl, qwen2.5vl: one token per 2 x 2 patches of whatever
    size the picture has, placed with M-RoPE. qwen3vl: the same with learned positions, and what three of the layers see
    behind the embeddings, so that it takes 6 layers or more. qwen3.5vl: that without those. gemma3: a fixed square, its
    patches averaged 4 x 4.
    """
    if kind not in PROJECTORS:
        raise ValueError(f"unknown kind '{kind}'; known: {', '.join(PROJECTORS)}")
    is_qwen, is_qwen25, is_qwen3 = kind.startswith("qwen"), kind == "qwen2.5vl", kind in ("qwen3vl", "qwen3.5vl")
    n_ff = n_ff or 2 * n_vision
    meta: dict[str, Any] = {
        "general.name": f"random-{kind}-{seed}",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTORS[kind],
        "clip.use_silu" if is_qwen25 else "clip.use_gelu": True,
        "clip.vision.embedding_length": n_vision,
        "clip.vision.feed_forward_length": n_ff,
        "clip.vision.block_count": n_layer,
        "clip.vision.projection_dim": n_embd,
        "clip.vision.attention.head_count": n_head,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_size": image_size,
        "clip.vision.patch_size": patch,
        "clip.vision.image_mean": [0.48, 0.46, 0.41],
        "clip.vision.image_std": [0.27, 0.26, 0.28],
    }
    if kind == "llava-next":
        meta["clip.vision.image_grid_pinpoints"] = list(pinpoints)
    if is_qwen25:
        meta |= {"clip.vision.window_size": WINDOW, "clip.vision.n_wa_pattern": FULL_EVERY}

    plan: Plan = {"v.patch_embd.weight": ((n_vision, 3, patch, patch), 2.0)}
    if is_qwen:
        plan["v.patch_embd.weight.1"] = ((n_vision, 3, patch, patch), 2.0)
        merged = 4 * n_vision
        plan |= _linear("mm.0", merged, merged) | _linear("mm.2", n_embd, merged)
        plan |= _norm("v.post_ln", n_vision, bias=not is_qwen25)
        if is_qwen3:
            plan["v.patch_embd.bias"] = ((n_vision,), 0.1)
            plan["v.position_embd.weight"] = (((image_size // patch) ** 2, n_vision), 1.0)
            for layer in deepstack_layers(n_layer) if kind == "qwen3vl" else ():
                name = f"v.deepstack.{layer}"
                plan |= _norm(f"{name}.norm", merged)
                plan |= _linear(f"{name}.fc1", merged, merged) | _linear(f"{name}.fc2", n_embd, merged)
    elif kind == "gemma3":
        plan["v.patch_embd.bias"] = ((n_vision,), 0.1)
        plan["v.position_embd.weight"] = (((image_size // patch) ** 2, n_vision), 1.0)
        plan["mm.soft_emb_norm.weight"] = ((n_vision,), None)
        plan["mm.input_projection.weight"] = ((n_vision, n_embd), 1.0)
        plan |= _norm("v.post_ln", n_vision)
    else:
        n_positions = (image_size // patch) ** 2 + 1
        plan["v.class_embd"] = ((n_vision,), 1.0)
        plan["v.position_embd.weight"] = ((n_positions, n_vision), 1.0)
        plan |= _norm("v.pre_ln", n_vision)
        plan |= _linear("mm.0", n_embd, n_vision) | _linear("mm.2", n_embd, n_embd)
    for layer in range(n_layer):
        block = f"v.blk.{layer}"
        if is_qwen3:
            plan |= _linear(f"{block}.attn_qkv", 3 * n_vision, n_vision)
        for name in ("attn_out",) if is_qwen3 else ("attn_q", "attn_k", "attn_v", "attn_out"):
            plan |= _linear(f"{block}.{name}", n_vision, n_vision)
        plan |= _linear(f"{block}.ffn_up", n_ff, n_vision) | _linear(f"{block}.ffn_down", n_vision, n_ff)
        if is_qwen25:
            plan |= _linear(f"{block}.ffn_gate", n_ff, n_vision)
        plan |= _norm(f"{block}.ln1", n_vision, bias=not is_qwen25)
        plan |= _norm(f"{block}.ln2", n_vision, bias=not is_qwen25)
    return _write(Path(path), meta, plan, FTYPES[ftype], seed)


def deepstack_layers(n_layer: int) -> list[int]:
    """Which layers of a qwen3vl encoder the language model sees besides the last; 8, 16 and 24 of the published 27."""
    return [(n_layer - 3) * part // 3 for part in (1, 2, 3)]


def _linear(name: str, n_out: int, n_in: int) -> Plan:
    return {f"{name}.weight": ((n_out, n_in), 1.0), f"{name}.bias": ((n_out,), 0.1)}


def _norm(name: str, n: int, bias: bool = True) -> Plan:
    return {f"{name}.weight": ((n,), None)} | ({f"{name}.bias": ((n,), 0.1)} if bias else {})


def _write(path: Path, meta: dict[str, Any], plan: Plan, ftype: GGMLQuantizationType, seed: int) -> Path:
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "clip")
    for key, value in meta.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)

    def stored_type(name: str, shape: tuple[int, ...]) -> np.dtype:
        narrow = ftype == GGMLQuantizationType.F16 and len(shape) > 1 and "position" not in name
        return np.dtype(np.float16 if narrow else np.float32)

    for name, (shape, _) in plan.items():
        dtype = stored_type(name, shape)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for index, (name, (shape, deviation)) in enumerate(plan.items()):
        writer.write_tensor_data(_values(shape, deviation, (seed, index)).astype(stored_type(name, shape)))
    writer.close()
    partial.replace(path)
    return path


def _values(shape: tuple[int, ...], deviation: float | None, key: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(key)
    if deviation is None:
        return rng.uniform(0.6, 1.6, shape)
    scale = deviation / (int(np.prod(shape[1:])) if len(shape) > 1 else 1) ** 0.5
    count = int(np.prod(shape))
    if count <= BLOCK:
        return np.asarray(rng.standard_normal(shape) * scale)
    return np.resize(rng.standard_normal(BLOCK) * scale, shape)

"""Random encoders with window attention: one per projector of the pinned clip loader that has block-diagonal masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from halfv_edge.testing.random_mmproj import Plan, _linear, _norm, _write

PATCH = 14

KINDS = ("qwen2.5vl_merger", "exaone4_5", "youtuvl", "muse-glimmer", "minicpmv4_6")
N_LAYER, N_HEAD, N_HEAD_KV, SIDE_POSITIONS = 4, 4, 2, {"muse-glimmer": 4, "minicpmv4_6": 70}


def make_windowed(
    path: str | Path, kind: str, *, n_embd: int, n_vision: int = 64, n_ff: int = 84, window: int = 8, seed: int = 0
) -> Path:
    """Write a random encoder for language models of `n_embd`.

    Rows of n_ff are no multiple of 32, as in Qwen2.5-VL. Only youtuvl's window can be other than 8 patches wide.
    """
    is_gated = kind in ("qwen2.5vl_merger", "exaone4_5")
    has_norm_bias = not is_gated
    meta: dict[str, Any] = {
        "general.name": f"tiny-{kind}-{seed}",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": kind,
        "clip.use_silu" if is_gated else "clip.use_gelu": True,
        "clip.vision.embedding_length": n_vision,
        "clip.vision.feed_forward_length": n_ff,
        "clip.vision.block_count": N_LAYER,
        "clip.vision.projection_dim": n_embd,
        "clip.vision.attention.head_count": N_HEAD,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_size": 16 * PATCH,
        "clip.vision.patch_size": PATCH,
        "clip.vision.image_mean": [0.48, 0.46, 0.41],
        "clip.vision.image_std": [0.27, 0.26, 0.28],
    }
    plan: Plan = {"v.patch_embd.weight": ((n_vision, 3, PATCH, PATCH), 2.0)}
    if is_gated:
        meta["clip.vision.n_wa_pattern"] = N_LAYER
        plan["v.patch_embd.weight.1"] = ((n_vision, 3, PATCH, PATCH), 2.0)
    if kind == "exaone4_5":
        meta["clip.vision.attention.head_count_kv"] = N_HEAD_KV
        meta["clip.vision.image_min_pixels"] = 4 * (2 * PATCH) ** 2
        meta["clip.vision.image_max_pixels"] = 4096 * (2 * PATCH) ** 2
    if kind == "youtuvl":
        meta["clip.vision.window_size"] = window * PATCH
        meta["clip.vision.wa_layer_indexes"] = [N_LAYER - 1]
        plan["v.patch_embd.weight"] = ((n_vision, 3 * PATCH * PATCH), 2.0)
        plan |= _without_bias(_norm("mm.input_norm", n_vision))
    if kind in SIDE_POSITIONS:
        plan["v.position_embd.weight"] = ((SIDE_POSITIONS[kind] ** 2, n_vision), 1.0)
    plan |= _layers(kind, n_vision, n_ff, is_gated, has_norm_bias)

    post_norm = _norm("v.post_ln", n_vision)
    plan |= post_norm if has_norm_bias else _without_bias(post_norm)
    merged = 4 * n_vision
    if kind == "muse-glimmer":
        plan |= _without_bias(_linear("mm.0", n_vision, merged) | _linear("mm.1", n_vision, n_vision))
        plan |= _without_bias(_linear("mm.2", n_embd, n_vision))
    elif kind == "minicpmv4_6":
        meta["clip.vision.projector.scale_factor"] = 4
        meta["clip.vision.wa_layer_indexes"] = [1]
        plan |= _norm("v.vit_merger.ln1", n_vision) | _norm("v.vit_merger.ds_ln", merged)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            plan |= _linear(f"v.vit_merger.{name}", n_vision, n_vision)
        plan |= _linear("v.vit_merger.ds_ffn_up", n_ff, merged) | _linear("v.vit_merger.ds_ffn_down", n_vision, n_ff)
        plan |= _norm("mm.input_norm", merged) | _linear("mm.up", n_ff, merged) | _linear("mm.down", n_embd, n_ff)
    else:
        plan |= _linear("mm.0", merged, merged) | _linear("mm.2", n_embd, merged)
    return _write(Path(path), meta, plan, GGMLQuantizationType.F32, seed)


def _layers(kind: str, n_vision: int, n_ff: int, is_gated: bool, has_norm_bias: bool) -> Plan:
    plan: Plan = {}
    for layer in range(N_LAYER):
        block = f"v.blk.{layer}"
        if kind == "exaone4_5":
            n_kv = n_vision // N_HEAD * N_HEAD_KV
            plan |= _linear(f"{block}.attn_qkv", n_vision + 2 * n_kv, n_vision)
        else:
            for name in ("attn_q", "attn_k", "attn_v"):
                plan |= _linear(f"{block}.{name}", n_vision, n_vision)
        plan |= _linear(f"{block}.attn_out", n_vision, n_vision)
        plan |= _linear(f"{block}.ffn_up", n_ff, n_vision) | _linear(f"{block}.ffn_down", n_vision, n_ff)
        if is_gated:
            plan |= _linear(f"{block}.ffn_gate", n_ff, n_vision)
        norms = _norm(f"{block}.ln1", n_vision) | _norm(f"{block}.ln2", n_vision)
        plan |= norms if has_norm_bias else _without_bias(norms)
    return plan


def _without_bias(plan: Plan) -> Plan:
    return {name: shape for name, shape in plan.items() if name.endswith(".weight")}

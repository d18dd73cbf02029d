"""A random encoder of Pixtral's kind: a row of the model's own behind each line of patches but the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

from halfv_edge.testing.random_mmproj import Plan, _linear, _norm, _write

PATCH, N_VISION, N_LAYER = 14, 32, 2


def make_pixtral(path: Path, n_embd: int) -> np.ndarray:
    """Write it for language models of `n_embd`; returns the row that ends a line."""
    meta = {
        "general.name": "tiny-pixtral",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "pixtral",
        "clip.use_silu": True,
        "clip.vision.embedding_length": N_VISION,
        "clip.vision.feed_forward_length": 64,
        "clip.vision.block_count": N_LAYER,
        "clip.vision.projection_dim": n_embd,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_size": 32 * PATCH,
        "clip.vision.patch_size": PATCH,
        "clip.vision.image_mean": [0.48, 0.46, 0.41],
        "clip.vision.image_std": [0.27, 0.26, 0.28],
    }
    plan: Plan = {
        "v.patch_embd.weight": ((N_VISION, 3, PATCH, PATCH), 2.0),
        "v.token_embd.img_break": ((n_embd,), 1.0),
        **_norm("v.pre_ln", N_VISION, bias=False),
        **_linear("mm.1", n_embd, N_VISION),
        **_linear("mm.2", n_embd, n_embd),
    }
    for layer in range(N_LAYER):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            plan |= _linear(f"{block}.{name}", N_VISION, N_VISION)
        plan |= _linear(f"{block}.ffn_up", 64, N_VISION) | _linear(f"{block}.ffn_gate", 64, N_VISION)
        plan |= _linear(f"{block}.ffn_down", N_VISION, 64)
        plan |= _norm(f"{block}.ln1", N_VISION, bias=False) | _norm(f"{block}.ln2", N_VISION, bias=False)
    _write(path, meta, plan, GGMLQuantizationType.F32, 0)
    return next(np.array(t.data) for t in GGUFReader(path).tensors if t.name == "v.token_embd.img_break")

"""Random models under the names that tests know, and LoRA adapters for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType

from halfv_edge.measure.bench.pictures import grid_positions
from halfv_edge.measure.bench.pictures import random_image as tiny_image
from halfv_edge.testing.random_models import ARCHS, MROPE_ARCHS, layer_shapes, write_gguf
from halfv_edge.testing.random_models import write_model as make_tiny

__all__ = ["ARCHS", "DROP", "FREEZE", "MROPE_ARCHS", "grid_positions", "make_tiny", "make_tiny_lora", "tiny_image"]

# profiles for their six layers
DROP = {
    "ivr.layer": 2,
    "ivr.keep": 0.5,
    "ivr.anchors": 0.2,
    "ssr.layer": 4,
    "ssr.update": 0.1,
    "ssr.rest": "dropped",
}
FREEZE = DROP | {"ssr.update": 0.0, "ssr.rest": "frozen"}


def make_tiny_lora(
    path: str | Path,
    arch: str,
    *,
    seed: int = 0,
    n_layer: int = 6,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 128,
    head_dim: int | None = None,
    rank: int = 4,
    alpha: float = 8.0,
    invocation: Sequence[int] = (),
) -> Path:
    """Write a random LoRA adapter for the model that `make_tiny` makes from the same shape arguments.

    With `invocation`, tokens, it is an aLoRA: servers switch it on where a prompt has them.
    """
    head_dim = head_dim or n_embd // n_head
    shapes = dict(layer_shapes(arch, n_embd, n_head * head_dim, n_head_kv * head_dim, n_ff, head_dim))
    meta = {
        "general.type": "adapter",
        "general.architecture": arch,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    if invocation:
        meta["adapter.alora.invocation_tokens"] = (list(invocation), GGUFValueType.UINT32)
    plan: list[tuple[str, tuple[int, ...], float | None]] = []
    for layer in range(n_layer):
        for name in ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_down.weight"):
            n_out, n_in = shapes[name][0]
            plan.append((f"blk.{layer}.{name}.lora_a", (rank, n_in), 0.5))
            plan.append((f"blk.{layer}.{name}.lora_b", (n_out, rank), 0.5))
    write_gguf(Path(path), meta, plan, GGMLQuantizationType.F32, seed)
    return Path(path)

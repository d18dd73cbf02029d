"""Tensors of a layer, by architecture: names, shapes and the scale of their random elements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ATTENTION_EVERY = 4  # layers, of qwen35
CONVOLUTION = 4  # tokens
DECAY = -1.0  # in place of a scale: all elements are negative, or a recurrent state would grow without end

Entry = tuple[str, tuple[tuple[int, ...], "float | None"]]


def layer_shapes(arch: str, n_embd: int, n_q: int, n_kv: int, n_ff: int, head_dim: int) -> Iterator[Entry]:
    # q and k are large enough that attention is far from uniform: kept sets must not hang on float noise
    yield "attn_norm.weight", ((n_embd,), None)
    yield "attn_q.weight", ((n_q * (2 if arch == "qwen35" else 1), n_embd), 1.2)  # its second half is a gate
    yield "attn_k.weight", ((n_kv, n_embd), 1.2)
    yield "attn_v.weight", ((n_kv, n_embd), 1.0)
    yield "attn_output.weight", ((n_embd, n_q), 0.7)
    if arch in ("qwen2", "qwen2vl"):
        yield "attn_q.bias", ((n_q,), 0.3 * n_q**0.5)
        yield "attn_k.bias", ((n_kv,), 0.3 * n_kv**0.5)
        yield "attn_v.bias", ((n_kv,), 0.3 * n_kv**0.5)
    if arch in ("qwen3", "qwen3vl", "gemma3", "qwen35"):
        yield "attn_q_norm.weight", ((head_dim,), None)
        yield "attn_k_norm.weight", ((head_dim,), None)
    if arch in ("gemma3", "qwen35"):
        yield "post_attention_norm.weight", ((n_embd,), None)
    if arch == "gemma3":
        yield "post_ffw_norm.weight", ((n_embd,), None)
    if arch != "qwen35":
        yield "ffn_norm.weight", ((n_embd,), None)
    yield from _ffn(n_embd, n_ff)


def delta_net_shapes(n_embd: int, n_ff: int) -> Iterator[Entry]:
    """A recurrent layer of qwen35: a short convolution and a gated delta net."""
    state, n_key, n_value = _delta_net(n_embd)
    values, channels = n_value * state, (2 * n_key + n_value) * state
    yield "attn_norm.weight", ((n_embd,), None)
    yield "post_attention_norm.weight", ((n_embd,), None)
    yield "attn_qkv.weight", ((channels, n_embd), 1.0)
    yield "attn_gate.weight", ((values, n_embd), 1.0)
    yield "ssm_conv1d.weight", ((channels, CONVOLUTION), 1.0)
    yield "ssm_dt.bias", ((n_value,), 0.3)
    yield "ssm_a", ((n_value,), DECAY)
    yield "ssm_beta.weight", ((n_value, n_embd), 1.0)
    yield "ssm_alpha.weight", ((n_value, n_embd), 1.0)
    yield "ssm_norm.weight", ((state,), None)
    yield "ssm_out.weight", ((n_embd, values), 0.7)
    yield from _ffn(n_embd, n_ff)


def qwen35_metadata(n_embd: int, head_dim: int) -> dict[str, Any]:
    """A quarter of each head is rotated; three of four layers are recurrent."""
    state, n_key, n_value = _delta_net(n_embd)
    half = head_dim // 8
    return {
        "qwen35.ssm.conv_kernel": CONVOLUTION,
        "qwen35.ssm.state_size": state,
        "qwen35.ssm.group_count": n_key,
        "qwen35.ssm.time_step_rank": n_value,
        "qwen35.ssm.inner_size": n_value * state,
        "qwen35.full_attention_interval": ATTENTION_EVERY,
        "qwen35.rope.dimension_count": 2 * half,
        "qwen35.rope.dimension_sections": [half - 2 * (half // 3), half // 3, half // 3, 0],
    }


def _delta_net(n_embd: int) -> tuple[int, int, int]:
    """State of a head, heads of keys and of values; 128, 16 and 32 in the 9B."""
    state = 128 if n_embd >= 1024 else 16
    return state, max(1, n_embd // state // 2), max(2, n_embd // state)


def _ffn(n_embd: int, n_ff: int) -> Iterator[Entry]:
    yield "ffn_gate.weight", ((n_ff, n_embd), 1.0)
    yield "ffn_up.weight", ((n_ff, n_embd), 1.0)
    yield "ffn_down.weight", ((n_embd, n_ff), 0.7)

"""The tiny transformers of the reference: what llama.cpp computes in one layer, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch.nn.functional import silu

# threads cost more than they bring on matrices this small, most of all on a busy machine
torch.set_num_threads(1)

INTERLEAVED_ROPE_ARCHS = ("qwen3vl",)
SECTION_ROPE_ARCHS = ("qwen2vl",)
ADJACENT_PAIR_ROPE_ARCHS = ("llama",)


class Transformer:
    """A model read from a GGUF file, dequantised. A LoRA adapter is merged into the weights."""

    def __init__(
        self,
        gguf_path: str | Path,
        dtype: torch.dtype = torch.float64,
        lora: str | Path | None = None,
        lora_scale: float = 1.0,
    ):
        reader = gguf.GGUFReader(gguf_path)
        self.arch = reader.fields["general.architecture"].contents()

        def hparam(name: str, default: Any = None) -> Any:
            field = reader.fields.get(f"{self.arch}.{name}")
            return default if field is None else field.contents()

        self.dtype = dtype
        self.n_layer = hparam("block_count")
        self.n_embd = hparam("embedding_length")
        self.n_head = hparam("attention.head_count")
        self.n_head_kv = hparam("attention.head_count_kv", self.n_head)
        self.head_dim = hparam("attention.key_length", self.n_embd // self.n_head)
        self.eps = hparam("attention.layer_norm_rms_epsilon")
        self.n_deepstack = hparam("n_deepstack_layers", 0)
        self.n_embd_inp = self.n_embd * (1 + self.n_deepstack)
        self.is_mrope = self.arch in SECTION_ROPE_ARCHS + INTERLEAVED_ROPE_ARCHS
        self.frequencies = hparam("rope.freq_base", 10000.0) ** (
            -torch.arange(0, self.head_dim, 2, dtype=dtype) / self.head_dim
        )
        self.rope_rows = self._position_row_of_each_pair(hparam("rope.dimension_sections", [0, 0, 0, 0]))
        self.weights = _read_tensors(reader, dtype)
        if lora is not None:
            self._merge_lora(lora, lora_scale)

    def _merge_lora(self, path: str | Path, scale: float) -> None:
        reader = gguf.GGUFReader(path)
        alpha = reader.fields["adapter.lora.alpha"].contents()
        tensors = _read_tensors(reader, self.dtype)
        for name in [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]:
            a, b = tensors[name + ".lora_a"], tensors[name + ".lora_b"]
            self.weights[name] = self.weights[name] + scale * alpha / len(a) * (b @ a)

    def _position_row_of_each_pair(self, sections: Sequence[int]) -> torch.Tensor:
        """For every rotary pair, which of the four positions (time, height, width, extra) turns it."""
        rows = [0] * (self.head_dim // 2)
        if self.arch in SECTION_ROPE_ARCHS:
            rows = [row for row, size in enumerate(sections) for _ in range(size)]
        elif self.arch in INTERLEAVED_ROPE_ARCHS:
            rows = [pair % 3 if pair < 3 * sections[pair % 3] else 3 for pair in range(len(rows))]
        return torch.tensor(rows)

    def norm(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[weight]

    def qkv(self, normed: torch.Tensor, layer: int) -> list[torch.Tensor]:
        """q, k, v as [heads, n, head_dim], before RoPE."""
        projections = []
        for name in ("attn_q", "attn_k", "attn_v"):
            x = normed @ self.weights[f"blk.{layer}.{name}.weight"].T
            if f"blk.{layer}.{name}.bias" in self.weights:
                x = x + self.weights[f"blk.{layer}.{name}.bias"]
            x = x.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
            if f"blk.{layer}.{name}_norm.weight" in self.weights:
                x = self.norm(x, f"blk.{layer}.{name}_norm.weight")
            projections.append(x)
        return projections

    def rope(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        angle = pos[self.rope_rows].T.to(self.dtype) * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        if self.arch in ADJACENT_PAIR_ROPE_ARCHS:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def rest_of_layer(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: torch.Tensor, layer: int,
        channels: torch.Tensor | None = None, heads: torch.Tensor | None = None, raised: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Attention and the feed-forward network, with their residuals. `sees` is [queries, keys], of each head or all.

        channels [n]: how many of the network's channels each token takes, the first ones; all if not given.
        heads [n]: the same of heads.
        raised [keys]: what logits of attention to each key have on top.
        """
        groups = self.n_head // self.n_head_kv
        attention = q @ k.repeat_interleave(groups, 0).transpose(1, 2) / self.head_dim**0.5
        attention = attention if raised is None else attention + raised
        attention = attention.masked_fill(~sees, -torch.inf).softmax(-1).nan_to_num()  # of those that see nothing
        mixed = (attention @ v.repeat_interleave(groups, 0)).transpose(0, 1)
        if heads is not None:
            mixed = mixed * (torch.arange(self.n_head) < heads[:, None])[..., None]
        mixed = mixed.flatten(1)
        x = x + mixed @ self.weights[f"blk.{layer}.attn_output.weight"].T

        normed = self.norm(x, f"blk.{layer}.ffn_norm.weight")
        gate = silu(normed @ self.weights[f"blk.{layer}.ffn_gate.weight"].T)
        up = normed @ self.weights[f"blk.{layer}.ffn_up.weight"].T
        inner = gate * up
        if channels is not None:
            inner = inner * (torch.arange(inner.shape[1]) < channels[:, None])
        return x + inner @ self.weights[f"blk.{layer}.ffn_down.weight"].T

    def precedes(self, q_pos: torch.Tensor, k_pos: torch.Tensor) -> torch.Tensor:
        """[queries, keys]: causal by time; tokens of the same time (M-RoPE) in raster order."""
        q_time, q_row, q_col, _ = q_pos[:, :, None]
        k_time, k_row, k_col, _ = k_pos[:, None, :]
        if not self.is_mrope:
            return k_time <= q_time
        in_raster_order = (k_row < q_row) | ((k_row == q_row) & (k_col <= q_col))
        return (k_time < q_time) | ((k_time == q_time) & in_raster_order)

    def logits(self, x: torch.Tensor) -> np.ndarray:
        output = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return (self.norm(x, "output_norm.weight") @ output.T).double().numpy()


def _read_tensors(reader: gguf.GGUFReader, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).to(dtype)
        for tensor in reader.tensors
    }

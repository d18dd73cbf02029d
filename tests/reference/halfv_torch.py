"""HalfV in plain torch, written from the description of the method and not from the native code.

The whole prompt is one table of tokens. A layer computes K and V for the tokens that are `visible` in it and everything
else for those that are `updated`; the three stages differ in these two index sets alone:

    stage I    layers [0, ivr_layer)          all tokens visible and updated
    stage II   layers [ivr_layer, ssr_layer)  text and the kept visual tokens visible and updated
    stage III  layers [ssr_layer, n_layer)    updated: text and the top visual tokens; visible: the same, and in mode
                                              `frozen` also the other kept ones, whose hidden states no longer change
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
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


@dataclasses.dataclass
class Text:
    """Token ids. `pos` is the first one's position; it continues after what came before when not given."""

    ids: Sequence[int]
    pos: int | None = None


@dataclasses.dataclass
class Image:
    """Embeddings [n, n_embd_inp]. `pos` is [4, n] for M-RoPE and [n] otherwise; consecutive when not given."""

    embd: np.ndarray
    pos: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Profile:
    ivr_layer: int
    ivr_keep: float
    ivr_anchors: float
    ssr_layer: int
    ssr_update: float
    ssr_rest: str
    min_visual_tokens: int = 64

    @classmethod
    def of(cls, values: Mapping[str, Any] | Profile) -> Profile:
        """From a mapping with the keys of the GGUF metadata, `ivr.layer`, or with the names above, `ivr_layer`."""
        if isinstance(values, Profile):
            return values
        return cls(**{key.replace(".", "_"): value for key, value in values.items() if key != "version"})


@dataclasses.dataclass
class Result:
    logits: np.ndarray  # of the last token
    kept: list[list[int]]  # per image: sorted indices of the tokens that reach stage II
    deep: list[list[int]]  # per image: sorted indices of the tokens still updated in stage III
    states: list[torch.Tensor] | None  # per layer boundary (n_layer + 1): hidden states [n_tokens, n_embd]


def share(ratio: float, count: int) -> int:
    """floor(ratio * count) for a ratio that travelled as float32, so that 5% of 60 is 3."""
    return math.floor(float(np.float32(ratio)) * count + 1e-6)


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the highest scores, best first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count]


def cover(features: np.ndarray, anchors: Sequence[int], count: int) -> np.ndarray:
    """Greedy farthest-point sampling by 1 - cos, seeded by the anchors: `count` sorted indices, anchors included."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    nearest = np.full(len(unit), np.inf)
    chosen: list[int] = []
    for step in range(count):
        index = int(anchors[step]) if step < len(anchors) else int(np.argmax(nearest))
        chosen.append(index)
        nearest = np.minimum(nearest, 1 - unit @ unit[index])
        nearest[chosen] = -np.inf
    return np.sort(np.array(chosen))


def visual_scores(query: torch.Tensor, keys: torch.Tensor) -> np.ndarray:
    """The scorer: softmax of one query over visual keys only, not scaled, mean over heads.

    query [n_head, head_dim]; keys [n_head_kv, n, head_dim].
    """
    keys = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)
    return torch.softmax(torch.einsum("hd,hnd->hn", query, keys), dim=-1).mean(0).double().numpy()


class Reference:
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

    def run(
        self,
        segments: Sequence[Text | Image],
        profile: Mapping[str, Any] | Profile | None = None,
        states: bool = False,
    ) -> Result:
        """Prefill a prompt that ends with text, from an empty memory. Without a profile: the dense model."""
        if not segments or not isinstance(segments[-1], Text):
            raise ValueError("the prompt must end with text: its last token settles the images")
        profile = None if profile is None else Profile.of(profile)
        hidden, deepstack, pos, images = self._embed(segments)
        n_tokens = len(hidden)
        self.kv: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        boundaries = [hidden.clone()]

        visible = updated = torch.arange(n_tokens)
        prunable = [i for i, rows in enumerate(images) if profile and len(rows) >= profile.min_visual_tokens]
        kept = [np.arange(len(rows)) for rows in images]  # indices within the image
        deep = list(kept)
        scores: dict[int, np.ndarray] = {}

        for layer in range(self.n_layer):
            if profile and layer == profile.ivr_layer and profile.ivr_keep < 1:
                for i in prunable:
                    n_kept = max(1, share(profile.ivr_keep, len(images[i])))
                    anchors = top(scores[i], share(profile.ivr_anchors, n_kept))
                    features = self._norm(hidden[images[i]], "output_norm.weight")
                    kept[i] = deep[i] = cover(features.double().numpy(), anchors, n_kept)
                visible = updated = _rows(n_tokens, images, kept)
            if profile and layer == profile.ssr_layer:
                for i in prunable:
                    n_updated = min(share(profile.ssr_update, len(images[i])), len(kept[i]))
                    deep[i] = np.sort(kept[i][top(scores[i], n_updated)])
                updated = _rows(n_tokens, images, deep)
                visible = visible if profile.ssr_rest == "frozen" else updated

            # the projections; q and k after their own norm where the architecture has one, before RoPE
            normed = self._norm(hidden, f"blk.{layer}.attn_norm.weight")
            q, k, v = self._qkv(normed, layer)
            if profile and layer == profile.ivr_layer - 1:
                scores = {i: visual_scores(q[:, -1], k[:, images[i]]) for i in prunable}
            q, k = self._rope(q, pos), self._rope(k, pos)
            if profile and layer == profile.ssr_layer - 1:
                scores = {i: visual_scores(q[:, -1], k[:, images[i][kept[i]]]) for i in prunable}

            self.kv.append((k[:, visible], v[:, visible], pos[:, visible]))
            out = self._rest_of_layer(hidden[updated], q[:, updated], pos[:, updated], layer)
            if layer < self.n_deepstack:
                out = out + deepstack[layer, updated]
            hidden = hidden.index_copy(0, updated, out)
            boundaries.append(hidden.clone())

        self.next_pos = int(pos[:3].max()) + 1
        return Result(
            logits=self._logits(hidden[-1]),
            kept=[rows.tolist() for rows in kept],
            deep=[rows.tolist() for rows in deep],
            states=boundaries if states else None,
        )

    def decode(self, token: int) -> np.ndarray:
        """One more token, attending in each layer to what that layer holds; its logits."""
        hidden = self.weights["token_embd.weight"][[token]]
        pos = torch.full((4, 1), self.next_pos)
        self.next_pos += 1
        for layer in range(self.n_layer):
            q, k, v = self._qkv(self._norm(hidden, f"blk.{layer}.attn_norm.weight"), layer)
            old_k, old_v, old_pos = self.kv[layer]
            self.kv[layer] = (
                torch.cat([old_k, self._rope(k, pos)], 1),
                torch.cat([old_v, v], 1),
                torch.cat([old_pos, pos], 1),
            )
            hidden = self._rest_of_layer(hidden, self._rope(q, pos), pos, layer)
        return self._logits(hidden[-1])

    def _embed(
        self, segments: Sequence[Text | Image]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Hidden states [n, n_embd], DeepStack rows [n_deepstack, n, n_embd] (zero for text), positions [4, n],
        and for each image the rows that it occupies."""
        inputs, positions, images = [], [], []
        next_pos = n_tokens = 0
        for segment in segments:
            if isinstance(segment, Text):
                length = len(segment.ids)
                rows = torch.zeros(length, self.n_embd_inp, dtype=self.dtype)
                rows[:, : self.n_embd] = self.weights["token_embd.weight"][list(segment.ids)]
                start = next_pos if segment.pos is None else segment.pos
                pos = torch.arange(start, start + length).expand(4, -1)
            else:
                length = len(segment.embd)
                rows = torch.from_numpy(segment.embd).to(self.dtype)
                images.append(torch.arange(n_tokens, n_tokens + length))
                pos = torch.arange(next_pos, next_pos + length)
                if segment.pos is not None:
                    pos = torch.from_numpy(np.asarray(segment.pos)).long()
                pos = pos.expand(4, -1)
            inputs.append(rows)
            positions.append(pos)
            next_pos = int(pos[:3].max()) + 1
            n_tokens += length
        table = torch.cat(inputs).unflatten(1, (-1, self.n_embd)).transpose(0, 1)
        return table[0], table[1:], torch.cat(positions, 1), images

    def _norm(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[weight]

    def _qkv(self, normed: torch.Tensor, layer: int) -> list[torch.Tensor]:
        """q, k, v as [heads, n, head_dim], before RoPE."""
        projections = []
        for name in ("attn_q", "attn_k", "attn_v"):
            x = normed @ self.weights[f"blk.{layer}.{name}.weight"].T
            if f"blk.{layer}.{name}.bias" in self.weights:
                x = x + self.weights[f"blk.{layer}.{name}.bias"]
            x = x.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
            if f"blk.{layer}.{name}_norm.weight" in self.weights:
                x = self._norm(x, f"blk.{layer}.{name}_norm.weight")
            projections.append(x)
        return projections

    def _rope(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        angle = pos[self.rope_rows].T.to(self.dtype) * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        if self.arch in ADJACENT_PAIR_ROPE_ARCHS:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def _rest_of_layer(self, x: torch.Tensor, q: torch.Tensor, pos: torch.Tensor, layer: int) -> torch.Tensor:
        """Attention over what the layer holds, and the feed-forward network, with their residuals."""
        k, v, k_pos = self.kv[layer]
        groups = self.n_head // self.n_head_kv
        attention = q @ k.repeat_interleave(groups, 0).transpose(1, 2) / self.head_dim**0.5
        attention = attention.masked_fill(~self._sees(pos, k_pos), -torch.inf).softmax(-1)
        mixed = (attention @ v.repeat_interleave(groups, 0)).transpose(0, 1).flatten(1)
        x = x + mixed @ self.weights[f"blk.{layer}.attn_output.weight"].T

        normed = self._norm(x, f"blk.{layer}.ffn_norm.weight")
        gate = silu(normed @ self.weights[f"blk.{layer}.ffn_gate.weight"].T)
        up = normed @ self.weights[f"blk.{layer}.ffn_up.weight"].T
        return x + (gate * up) @ self.weights[f"blk.{layer}.ffn_down.weight"].T

    def _sees(self, q_pos: torch.Tensor, k_pos: torch.Tensor) -> torch.Tensor:
        """Causal by time; under M-RoPE tokens of the same time are in raster order (height, then width)."""
        q_time, q_row, q_col, _ = q_pos[:, :, None]
        k_time, k_row, k_col, _ = k_pos[:, None, :]
        if not self.is_mrope:
            return k_time <= q_time
        in_raster_order = (k_row < q_row) | ((k_row == q_row) & (k_col <= q_col))
        return (k_time < q_time) | ((k_time == q_time) & in_raster_order)

    def _logits(self, x: torch.Tensor) -> np.ndarray:
        output = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return (self._norm(x, "output_norm.weight") @ output.T).double().numpy()


def _read_tensors(reader: gguf.GGUFReader, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).to(dtype)
        for tensor in reader.tensors
    }


def _rows(n_tokens: int, images: list[torch.Tensor], survivors: list[np.ndarray]) -> torch.Tensor:
    """The prompt's rows without the visual tokens that did not survive."""
    stays = torch.ones(n_tokens, dtype=torch.bool)
    for rows, alive in zip(images, survivors, strict=True):
        stays[rows] = False
        stays[rows[alive]] = True
    return stays.nonzero().flatten()

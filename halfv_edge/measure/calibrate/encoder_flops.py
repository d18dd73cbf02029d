"""What a picture costs in the vision encoder, by what its file says of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halfv_edge.engine.encoder import Encoder
from halfv_edge.gguf import encoder_keys
from halfv_edge.gguf.mmproj import tensors_of
from halfv_edge.gguf.read import Metadata, read_metadata
from halfv_edge.measure.encoder_attention import USUAL_WINDOW
from halfv_edge.profile.profile import Intake


@dataclass(frozen=True, slots=True)
class EncoderFlops:
    """Products and attention are counted; norms, activations and the choice of what later layers see are not."""

    layers: tuple[float, ...]  # FLOPs of each one's matrices, a patch
    ends: float  # of what stands before and behind them, a token
    n_embd: int
    merged: float  # patches of a token
    seen: tuple[float, ...]  # patches that one looks at in each layer, at most

    @classmethod
    def of(cls, encoder: Encoder, n_tokens: int) -> EncoderFlops:
        """n_tokens: of a picture, or of one tile, as this encoder gives them; any where it takes any size."""
        metadata = read_metadata(encoder.path)
        values: dict[str, Any] = {
            name: metadata.value(f"clip.vision.{name}") or 0
            for name in ("block_count", "patch_size", "image_size", "embedding_length")
        }
        per_layer, ends = [0.0] * values["block_count"], 0.0
        if encoder.is_mrope:
            merged = float(encoder_keys.merge(metadata) ** 2)
        else:
            merged = (values["image_size"] // values["patch_size"]) ** 2 / max(1, n_tokens)
        for tensor in tensors_of(metadata):
            flops = 2.0 * tensor.shape[0] * tensor.n_rows
            first, _, rest = tensor.name.removeprefix("v.").partition(".")
            if first == "blk" and len(tensor.shape) == 2:
                per_layer[int(rest.partition(".")[0])] += flops
            elif first == "patch_embd" and len(tensor.shape) == 4:
                ends += flops * merged
            elif tensor.name.startswith("mm.") and len(tensor.shape) == 2:
                ends += flops
        own = float("inf") if encoder.is_mrope else merged * n_tokens
        seen = [own if window is None else window for window in _windows(metadata, len(per_layer))]
        return cls(tuple(per_layer), ends, values["embedding_length"], merged, tuple(seen))

    def __call__(self, n_tokens: float, intake: Intake) -> float:
        """Of a picture of which so many tokens enter."""
        whole = n_tokens * self.merged
        total = n_tokens * self.ends
        for layer, (matrices, seen) in enumerate(zip(self.layers, self.seen, strict=True)):
            share = intake.encoder_keep if layer >= intake.encoder_layer else 1.0
            total += whole * share * (matrices + 4 * self.n_embd * min(whole, seen) * share)
        return total


def _windows(metadata: Metadata, n_layer: int) -> list[float | None]:
    """Patches of a window in each layer; None where all are seen."""
    pattern = metadata.value("clip.vision.n_wa_pattern")
    if not pattern:
        return [None] * n_layer
    patch = int(metadata.value("clip.vision.patch_size") or 1)
    window = int(metadata.value("clip.vision.window_size") or USUAL_WINDOW) // patch
    return [None if (layer + 1) % int(pattern) == 0 else float(window**2) for layer in range(n_layer)]

"""Keys and values of visual tokens in fewer bits: how policies write it, and what a picture takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from halfv_cpp.tensor_types import TENSOR_TYPES

from halfv_edge.errors import HalfVError
from halfv_edge.measure.schedules import whole

PER_TOKEN = ("q8_0", "q4_0")  # ggml's blocks along a token's row
PER_CHANNEL = ("1", "2", "4")  # bits, between the extremes of each channel over the tokens of a picture
CALIBRATED = ("1", "2")  # of which CalibQuant maps the logits as well
EXTREMES_BYTES = 2 * 2  # of a channel, as f16


@dataclass(frozen=True, slots=True)
class VisualBits:
    """What becomes of visual tokens' keys and values when the prompt is in. Text stays as it is."""

    kind: str
    first_layer: int = 0
    calibrated: bool = False  # logits of visual tokens are mapped to a range of their own

    @property
    def n_bits(self) -> int | None:
        """Per channel; None where ggml's blocks are taken."""
        return int(self.kind) if self.kind in PER_CHANNEL else None

    def n_bytes(self, n_tokens: int, n_values: int) -> int:
        """Of the keys, or the values, of a picture in a layer."""
        if self.n_bits is None:
            return n_tokens * TENSOR_TYPES[self.kind].row_bytes(n_values)
        return n_values * (-(-n_tokens * self.n_bits // 8) + EXTREMES_BYTES)


def parse_bits(name: str, value: str) -> VisualBits:
    """`q4_0`, `1`, or `1/4`: a kind, and the first layer that has it."""
    kind, slash, layer = value.partition("/")
    if kind not in PER_TOKEN + PER_CHANNEL:
        kinds = ", ".join(PER_TOKEN + PER_CHANNEL)
        raise HalfVError(f"The policy {name!r} is not valid: {kind} must be one of {kinds} (bits per channel).")
    return VisualBits(kind, whole(name, layer) if slash else 0)


def parse_calibrated(name: str, value: str) -> VisualBits:
    """CalibQuant's: one bit, or as many as are given."""
    if value and not re.fullmatch("|".join(CALIBRATED), value):
        raise HalfVError(f"The policy {name!r} is not valid: {value} must be 1 or 2 bits.")
    return VisualBits(value or "1", calibrated=True)

"""Values that a profile can have: C floats, whole numbers, text and lists, and what is said of others."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from halfv_edge.errors import HalfVError, quote
from halfv_edge.gguf.read import ARRAY, FLOAT32, STRING, UINT32

PREFIX = "halfv."
WHOLES = ARRAY << 8 | UINT32  # a list of whole numbers; in a GGUF an array of u32
TYPE_RULES = {
    UINT32: "a whole number from 0 to 4294967295",
    FLOAT32: "a number",
    STRING: "text",
    ARRAY: "a list of numbers",
    WHOLES: "a list of whole numbers from 0 to 4294967295",
}


def to_f32(value: float) -> float:
    """The shortest decimal of the nearest C float, so that 0.1 stays 0.1 through a GGUF."""
    try:
        value = float(value)
        packed = struct.pack("<f", value)
    except OverflowError:
        return math.copysign(math.inf, value)
    exact: float = struct.unpack("<f", packed)[0]
    if math.isfinite(exact):
        for digits in range(6, 10):
            short = float(f"{exact:.{digits}g}")
            if abs(short) < 3.4e38 and struct.pack("<f", short) == packed:
                return short
    return exact


class InvalidError(HalfVError):
    """A value that a profile cannot have; the reader of a file adds its name."""


def complaint(key: str, value: Any, rule: str) -> InvalidError:
    shown = f"{struct.unpack('<f', struct.pack('<f', value))[0]:g}" if isinstance(value, float) else value
    return InvalidError(f"{PREFIX}{key} = {shown} is not valid: {rule}")


def check_finite(key: str, values: Iterable[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise complaint(key, value, "it must be finite")


def check_types(prefix: str, values: Mapping[str, tuple[Any, int]]) -> None:
    for key, (value, type_) in values.items():
        if not fits(value, type_):
            raise complaint(prefix + key, quote(value), f"it must be {TYPE_RULES[type_]}")


def fits(value: Any, type_: int) -> bool:
    if type_ == STRING:
        return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # JSON can hold half a character
    if type_ == ARRAY:
        return isinstance(value, (list, tuple)) and all(fits(item, FLOAT32) for item in value)
    if type_ == WHOLES:
        return isinstance(value, (list, tuple)) and all(fits(item, UINT32) for item in value)
    if isinstance(value, bool):
        return False
    if type_ == UINT32:
        return isinstance(value, int) and 0 <= value < 1 << 32
    return isinstance(value, (int, float))

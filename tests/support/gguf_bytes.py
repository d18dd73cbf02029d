"""GGUF files byte by byte, so that tests can write what no writer would. The library's own writer has no part in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")
CODES = {name: code for code, name in enumerate(NAMES)}
FORMATS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?"}
FORMATS |= {"u64": "Q", "i64": "q", "f64": "d"}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return u64(len(raw)) + raw


def scalar(type_: str, value: Any) -> bytes:
    return text(value) if type_ == "str" else struct.pack("<" + FORMATS[type_], value)


def pair(key: str | bytes, type_: str, value: Any, item_type: str = "f32") -> bytes:
    head = text(key) + u32(CODES[type_])
    if type_ != "arr":
        return head + scalar(type_, value)
    return head + u32(CODES[item_type]) + u64(len(value)) + b"".join(scalar(item_type, item) for item in value)


def tensor_info(name: str | bytes, n_elements: int, offset: int) -> bytes:
    """A row of f32."""
    return text(name) + u32(1) + u64(n_elements) + u32(0) + u64(offset)


def header(n_tensors: int, n_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + u32(version) + u64(n_tensors) + u64(n_keys)


def padded(raw: bytes, alignment: int) -> bytes:
    return raw + bytes(-len(raw) % alignment)


def gguf(
    pairs: Sequence[bytes], tensors: Iterable[tuple[str, bytes]] = (), *, version: int = 3, alignment: int = 32
) -> bytes:
    """A whole file; `alignment` other than 32 has to be among the pairs too."""
    infos, data = [], b""
    for name, raw in tensors:
        infos.append(tensor_info(name, len(raw) // 4, len(data)))
        data += padded(raw, alignment)
    meta = header(len(infos), len(pairs), version) + b"".join(pairs) + b"".join(infos)
    return (padded(meta, alignment) if infos else meta) + data


# enough for a language model in the eyes of `halfv profile`
MODEL = (
    pair("general.architecture", "str", "llama"),
    pair("general.name", "str", "hand made"),
    pair("llama.block_count", "u32", 6),
)
PROFILE = (
    pair("halfv.version", "u32", 1),
    pair("halfv.ivr.layer", "u32", 2),
    pair("halfv.ivr.keep", "f32", 0.5),
    pair("halfv.ivr.anchors", "f32", 0.2),
    pair("halfv.ssr.layer", "u32", 4),
    pair("halfv.ssr.update", "f32", 0.1),
    pair("halfv.ssr.rest", "str", "dropped"),
)
TENSORS = (("a.weight", bytes(range(200))), ("b.weight", bytes(range(100))))

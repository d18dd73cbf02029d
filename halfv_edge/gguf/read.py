"""Reads the metadata of a GGUF: which keys there are, where their bytes lie, and single values on demand.

Our own reader and not the gguf package's: that one maps the file and makes arrays of every key. Here a bad file must be
refused with one sentence, in bounded memory and time, and a rewrite needs to know the places of the bytes, not values.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from halfv_edge import files
from halfv_edge.errors import HalfVError, quote

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the same bytes; 1 had 32-bit lengths

UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
TYPE_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SIZES = {type_: struct.calcsize("<" + letter) for type_, letter in FORMATS.items()}

# Far above any real model, so that a damaged or hostile file is refused before it costs memory or time.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_STRINGS = 1 << 22  # keys, tensor names and elements of string arrays together
MAX_KEY_BYTES = (1 << 16) - 1
MAX_ALIGNMENT = 1 << 20
MAX_VALUE_BYTES = 1 << 20  # of a value that is read, not only passed over
CHUNK = 1 << 16
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key: its type, and the bytes [start, end) of the whole pair, the value's from `value` on."""

    key: str
    type: int
    item_type: int  # of an array, else the same as type
    count: int
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """Where everything is in a GGUF."""

    path: Path
    version: int
    n_tensors: int
    entries: dict[str, Entry]
    alignment: int
    infos: int  # start of the tensor infos, where the keys end
    infos_end: int
    data: int  # start of the tensor data
    size: int  # of the file

    def type_name(self, key: str) -> str:
        return TYPE_NAMES[self.entries[key].type]

    def value(self, key: str) -> Any:
        """The value of a key, None when there is none: a number, a str, or a list of numbers."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.end - entry.value > MAX_VALUE_BYTES or (entry.type == ARRAY and entry.item_type == STRING):
            raise HalfVError(f"{self.path}: {key} is a {TYPE_NAMES[entry.item_type]} value that is too long to read.")
        with files.reading(self.path) as file:
            file.seek(entry.value)
            raw = file.read(entry.end - entry.value)
        if len(raw) != entry.end - entry.value:
            raise HalfVError(f"{self.path} changed while it was read: try again.")
        if entry.type == STRING:
            return raw.decode("utf-8", "backslashreplace")
        values = struct.unpack(f"<{entry.count}{FORMATS[entry.item_type]}", raw)
        return list(values) if entry.type == ARRAY else values[0]

    def text(self, key: str) -> str:
        """The value of a string key, "" when there is none or it is of another type or very long."""
        entry = self.entries.get(key)
        usable = entry and entry.type == STRING and entry.end - entry.value <= MAX_VALUE_BYTES
        return self.value(key) if usable else ""


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Find every key of a GGUF; no tensor is read."""
    path = Path(path)
    with files.reading(path) as file:
        return _Scanner(path, file).scan()


class _Scanner:
    """Walks from the first byte to the tensor data; a length is checked against what is left before it is believed."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0
        self.strings = 0

    def scan(self) -> Metadata:
        version, n_tensors, n_keys = self.header()
        entries: dict[str, Entry] = {}
        for _ in range(n_keys):
            entry = self.entry()
            if entry.key in entries:
                self.refuse(f"the key {quote(entry.key)} is there twice")
            entries[entry.key] = entry
        infos = self.at
        alignment = self.alignment(entries)
        last_name, last_offset = "", 0
        for _ in range(n_tensors):
            name, offset = self.tensor_info()
            if offset >= last_offset:
                last_name, last_offset = name, offset
        infos_end = self.at
        data = infos_end + -infos_end % alignment
        if n_tensors and data + last_offset > self.size:
            self.cut_short(f"before the tensor {quote(last_name)} at byte {data + last_offset}")
        # a file without tensors need not be padded
        return Metadata(
            self.path, version, n_tensors, entries, alignment, infos, infos_end, min(data, self.size), self.size
        )

    def header(self) -> tuple[int, int, int]:
        if self.size == 0:
            raise HalfVError(f"{self.path} is empty: it is not a GGUF file.")
        magic = self.file.read(4)
        if magic != MAGIC:
            raise HalfVError(f"{self.path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'.")
        self.at = 4
        version = self.number("I")
        if version and version & 0xFFFF == 0:
            raise HalfVError(f"{self.path} is a big-endian GGUF: only little-endian ones can be read.")
        if version not in VERSIONS:
            raise HalfVError(f"{self.path} is a GGUF of version {version}: versions 2 and 3 can be read.")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        for count, limit, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "keys")):
            if count > limit:
                self.refuse(f"it claims {count} {what}, more than {limit}")
        return version, n_tensors, n_keys

    def entry(self) -> Entry:
        start = self.at
        key = self.string(MAX_KEY_BYTES, "a key")
        try:
            key_text = key.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"the key {key[:40]!r} is not text")
        if not key_text:
            self.refuse("a key is empty")
        type_ = item_type = self.number("I")
        count = 1
        if type_ == ARRAY:
            item_type, count = self.number("I"), self.number("Q")
        value = self.at
        if item_type == STRING:
            self.claim(count, f"{quote(key_text)}, {count} strings")
            if type_ == STRING:
                length = self.number("Q")
                value = self.at
                self.skip(length, f"{quote(key_text)}, {length} bytes")
            else:
                self.skip_strings(count, f"a string of {quote(key_text)}")
        elif item_type in SIZES:
            self.skip(count * SIZES[item_type], f"{quote(key_text)}, {count} values")
        else:
            self.refuse(f"{quote(key_text)} is of the unknown type {item_type}")
        return Entry(key_text, type_, item_type, count, start, value, self.at)

    def alignment(self, entries: dict[str, Entry]) -> int:
        entry = entries.get("general.alignment")
        if entry is None:
            return 32
        if entry.type != UINT32:
            self.refuse(f"general.alignment is of type {TYPE_NAMES[entry.type]}, not u32")
        self.file.seek(entry.value)
        alignment: int = struct.unpack("<I", self.file.read(4))[0]
        self.file.seek(self.at)
        if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self.refuse(f"general.alignment = {alignment} is not a power of two up to {MAX_ALIGNMENT}")
        return alignment

    def tensor_info(self) -> tuple[str, int]:
        name = self.string(63, "a tensor's name").decode("utf-8", "backslashreplace")
        n_dims = self.number("I")
        if n_dims > 4:
            self.refuse(f"the tensor {quote(name)} has {n_dims} dimensions, more than 4")
        self.skip(8 * n_dims + 4, "a tensor's shape")
        return name, self.number("Q")

    def number(self, letter: str) -> int:
        size = struct.calcsize("<" + letter)
        value: int = struct.unpack("<" + letter, self.take(size, "its metadata"))[0]
        return value

    def string(self, limit: int, what: str) -> bytes:
        self.claim(1, what)
        length = self.number("Q")
        if length > limit:
            self.refuse(f"{what} claims {length} bytes, more than {limit}")
        return self.take(length, what)

    def claim(self, count: int, what: str) -> None:
        """Before strings are walked one by one: can that many be there, and is it worth believing?"""
        self.strings += count
        if self.strings > MAX_STRINGS:
            self.refuse(f"it claims more than {MAX_STRINGS} strings")
        if count * 8 > self.size - self.at:
            self.cut_short(f"inside {what}")

    def take(self, size: int, what: str) -> bytes:
        raw = self.file.read(size) if size <= self.size - self.at else b""
        if len(raw) != size:
            self.cut_short(f"inside {what}")
        self.at += size
        return raw

    def skip(self, size: int, what: str) -> None:
        if size > self.size - self.at:
            self.cut_short(f"inside {what}")
        self.at += size
        self.file.seek(self.at)

    def skip_strings(self, count: int, what: str) -> None:
        """A vocabulary has some hundred thousand, so they are walked in memory and not one read each."""
        while count:
            chunk = self.file.read(min(CHUNK, self.size - self.at))
            if len(chunk) < 8:
                self.cut_short(f"inside {what}")
            at = 0
            while count and at + 8 <= len(chunk):
                at += 8 + LENGTH.unpack_from(chunk, at)[0]
                count -= 1
            self.file.seek(self.at)
            self.skip(at, what)

    def cut_short(self, why: str) -> NoReturn:
        raise HalfVError(f"{self.path} is cut short or damaged: it ends at byte {self.size}, {why}; get it again.")

    def refuse(self, why: str) -> NoReturn:
        raise HalfVError(f"{self.path} is damaged: {why}; get it again.")


def encode_entry(key: str, type_: int, value: Any) -> bytes:
    """The bytes of one pair; `value` is a number, a str, or a list of u32 (int) or f32 (float)."""
    head = _string(key) + struct.pack("<I", type_)
    if type_ == STRING:
        return head + _string(value)
    if type_ == ARRAY:
        item = UINT32 if value and all(isinstance(each, int) for each in value) else FLOAT32
        return head + struct.pack(f"<IQ{len(value)}{FORMATS[item]}", item, len(value), *value)
    return head + struct.pack("<" + FORMATS[type_], value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw

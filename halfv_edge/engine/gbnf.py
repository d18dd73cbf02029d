"""Pieces of GBNF, llama.cpp's grammar language: literals, sets of characters, repetitions, ranges of integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST_REPETITIONS = 2000  # llama.cpp refuses more as a minimum, and takes more as a maximum for no maximum
Ranges = Sequence[tuple[int, int]]  # of code points, ends included
LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)


def literal(text: str) -> str:
    """This text and nothing else."""
    return '"' + "".join(_escaped(ord(char), '"') for char in text) + '"'


def one_of(ranges: Ranges) -> str:
    """One character of these."""
    parts = (_in_set(low) if low == high else f"{_in_set(low)}-{_in_set(high)}" for low, high in ranges)
    return f"[{''.join(parts)}]"


def _in_set(code: int) -> str:
    return _escaped(code, "]^-[")


def _escaped(code: int, special: str) -> str:
    char = chr(code)
    if char.isprintable() and char not in special and char != "\\":
        return char
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def normal(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same characters in ascending order, each once."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], high)
        else:
            out.append((low, high))
    return out


def all_but(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every character that is not one of these."""
    out, start = [], 0
    for low, high in normal([*ranges, SURROGATES]):
        if start < low:
            out.append((start, low - 1))
        start = high + 1
    return [*out, (start, LAST)] if start <= LAST else out


def repeated(item: str, least: int, most: int | None) -> str:
    """An item, which is one symbol or a group, so many times. A maximum beyond llama.cpp's becomes that."""
    if most is not None:
        most = min(most, MOST_REPETITIONS)
    known = {(0, None): "*", (1, None): "+", (0, 1): "?", (1, 1): ""}
    if (least, most) in known:
        return item + known[least, most]
    return f"{item}{{{least}}}" if least == most else f"{item}{{{least},{'' if most is None else most}}}"


def either(alternatives: Sequence[str]) -> str:
    return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


def integers(low: int | None, high: int | None, digits: int) -> str:
    """The whole numbers from low to high, None for no bound; without a bound they have at most so many digits."""
    low = -(10**digits - 1) if low is None else low
    high = 10**digits - 1 if high is None else high
    parts = []
    if low < 0:
        parts.append(f'"-" {_counts(max(1, -high), -low)}')
    if high >= 0:
        parts.append(_counts(max(0, low), high))
    return either(parts)


def _counts(low: int, high: int) -> str:
    """Whole numbers from 0 on."""
    parts = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        parts.append(_same_length(str(first), str(min(high, 10**length - 1))))
    return either(parts)


def _same_length(low: str, high: str) -> str:
    if not low:
        return '""'
    if low == high:
        return literal(low)
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return " ".join([_digit(low[0], high[0]), repeated("[0-9]", len(low) - 1, len(low) - 1)][: len(low)])
    if low[0] == high[0]:
        return f"{literal(low[0])} {_same_length(low[1:], high[1:])}"
    rest = len(low) - 1
    parts = [f"{literal(low[0])} {_same_length(low[1:], '9' * rest)}"]
    if int(high[0]) - int(low[0]) > 1:
        middle = _digit(str(int(low[0]) + 1), str(int(high[0]) - 1))
        parts.append(f"{middle} {repeated('[0-9]', rest, rest)}")
    parts.append(f"{literal(high[0])} {_same_length('0' * rest, high[1:])}")
    return either(parts)


def _digit(low: str, high: str) -> str:
    return literal(low) if low == high else f"[{low}-{high}]"

"""A regular expression as a grammar of JSON strings: what `pattern` and `format` of a JSON schema ask for."""

from __future__ import annotations

from halfv_edge.engine import gbnf

# code points that a JSON string holds only escaped
QUOTE, BACKSLASH, FIRST_PLAIN = ord('"'), ord("\\"), 0x20
SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\f": "\\f", "\b": "\\b", '"': '\\"', "\\": "\\\\"}
CLASSES = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [(0x09, 0x0D), (0x20, 0x20)],
}
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}


class PatternError(ValueError):
    """A regular expression that is not valid, or has what no grammar can say."""


def grammar(pattern: str) -> str:
    """GBNF for the inside of a JSON string that a pattern is found in; all of it where ^ and $ say so."""
    return _Parser(pattern).whole()


def character(ranges: gbnf.Ranges) -> str:
    """GBNF for one character of these, as JSON writes it: without control characters that only \\u00XX can write."""
    plain, escaped = [], []
    for low, high in gbnf.normal(ranges):
        start = max(low, FIRST_PLAIN)
        for special in (QUOTE, BACKSLASH):
            if start <= special <= high:
                plain.append((start, special - 1))
                start = special + 1
                escaped.append(chr(special))
        plain.append((start, high))
        escaped += [char for char in map(chr, range(low, min(high, FIRST_PLAIN - 1) + 1)) if char in SHORT]
    plain = [(low, high) for low, high in plain if low <= high]
    parts = [gbnf.one_of(plain)] if plain else []
    parts += [gbnf.literal(SHORT[char]) for char in escaped]
    if not parts:
        raise PatternError("it asks for a control character that JSON has no short form for")
    return gbnf.either(parts)


ANY = character(gbnf.all_but([]))


class _Parser:
    """Recursive descent: alternatives of sequences of repeated atoms."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.at = 0

    def whole(self) -> str:
        start = self._take("^")
        body = self._alternatives(top=True)
        end = self._take("$")
        if self.at < len(self.pattern):
            raise PatternError(f"{self.pattern[self.at :]!r} stands where it ends")
        return " ".join(filter(None, ["" if start else f"{ANY}*", body, "" if end else f"{ANY}*"]))

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _take(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self.at += 1
        return True

    def _alternatives(self, top: bool = False) -> str:
        parts = [self._sequence(top)]
        while self._take("|"):
            parts.append(self._sequence(top))
        if top and len(parts) > 1 and (self.pattern[:1] == "^" or self.pattern[-1:] == "$"):
            raise PatternError("^ and $ belong to one of its alternatives only: put those in parentheses")
        return gbnf.either([part or '""' for part in parts])

    def _sequence(self, top: bool) -> str:
        parts = []
        while (char := self._peek()) and char not in "|)":
            if char == "$" and top and self.at == len(self.pattern) - 1:
                break
            parts.append(self._repeated())
        return " ".join(parts)

    def _repeated(self) -> str:
        atom = self._atom()
        if self._take("*"):
            bounds: tuple[int, int | None] = (0, None)
        elif self._take("+"):
            bounds = (1, None)
        elif self._take("?"):
            bounds = (0, 1)
        elif self._take("{"):
            bounds = self._bounds()
        else:
            return atom
        self._take("?")  # which of several matches is found first makes no difference here
        if bounds[0] > gbnf.MOST_REPETITIONS:
            raise PatternError(f"it asks for more than {gbnf.MOST_REPETITIONS} repetitions")
        return gbnf.repeated(atom, *bounds)

    def _bounds(self) -> tuple[int, int | None]:
        inside, brace, _ = self.pattern[self.at :].partition("}")
        least, comma, most = inside.partition(",")
        if not brace or not least.isdecimal() or not (most.isdecimal() or not most):
            raise PatternError(f"{{{inside} is no number of repetitions")
        self.at += len(inside) + 1
        upper = int(most) if most else None if comma else int(least)
        if upper is not None and upper < int(least):
            raise PatternError(f"{{{inside}}} has its bounds in the wrong order")
        return int(least), upper

    def _atom(self) -> str:
        char = self._peek()
        self.at += 1
        if char == "(":
            if self._take("?") and not self._take(":"):
                raise PatternError("it looks around, or has flags or names in a group")
            body = self._alternatives()
            if not self._take(")"):
                raise PatternError("a parenthesis is not closed")
            return body if body.startswith("(") and body.endswith(")") and body.count("(") == 1 else f"({body})"
        if char == "[":
            return character(self._set())
        if char == ".":
            return character(gbnf.all_but([(0x0A, 0x0A), (0x0D, 0x0D)]))
        if char in "^$*+?{":
            raise PatternError(f"{char!r} stands where it means nothing")
        if char == "\\":
            return character(self._escape())
        return character([(ord(char), ord(char))])

    def _escape(self) -> list[tuple[int, int]]:
        char = self._peek()
        self.at += 1
        if char.lower() in CLASSES and char:
            ranges = CLASSES[char.lower()]
            return ranges if char.islower() else gbnf.all_but(ranges)
        if char in ("u", "x"):
            digits = self.pattern[self.at : self.at + (4 if char == "u" else 2)]
            self.at += len(digits)
            try:
                return [(int(digits, 16), int(digits, 16))]
            except ValueError:
                raise PatternError(f"\\{char}{digits} is no character") from None
        char = CONTROLS.get(char, char)
        if not char or char.isalnum():
            raise PatternError(f"\\{char} is not known")
        return [(ord(char), ord(char))]

    def _set(self) -> list[tuple[int, int]]:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._in_set()
            if self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", "") and len(low) == 1:
                self.at += 1
                high = self._in_set()
                if len(high) != 1 or high[0][0] < low[0][0]:
                    raise PatternError("a range of characters has its ends in the wrong order")
                ranges.append((low[0][0], high[0][1]))
            else:
                ranges += low
        if not ranges:
            raise PatternError("a set of characters is empty")
        return gbnf.all_but(ranges) if negated else ranges

    def _in_set(self) -> list[tuple[int, int]]:
        char = self._peek()
        if not char:
            raise PatternError("a set of characters is not closed")
        self.at += 1
        return self._escape() if char == "\\" else [(ord(char), ord(char))]

"""The keys of a profile, a record each: readers, writers, checks, flags and their help are made of these.

native/src/profile/halfv-keys.h is the table of the native library; tests/files/test_keys.py compares the two, and both
with docs/gguf-format.md. docs/architecture.md says how to add a key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from halfv_edge.errors import quote
from halfv_edge.gguf.read import ARRAY, FLOAT32, STRING, UINT32
from halfv_edge.profile.values import WHOLES, complaint


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a key can have."""

    low: float
    high: float
    rule: str
    metavar: str


SHARE = Range(0, 1, "between 0 and 1", "SHARE")
PART = Range(math.ulp(0), 1, "above 0 and at most 1", "SHARE")
BETA = Range(0, 1, "between 0 and 1", "BETA")
LEVELS = Range(0, 255, "between 0 and 255", "LEVELS|off")  # such a key may also be absent, which is "off"
FROM_1 = Range(1, math.inf, "at least 1", "N")
METAVARS = {UINT32: "N", WHOLES: "N,N,...", ARRAY: "SHARE,..."}


@dataclass(frozen=True, slots=True)
class Key:
    """One of them."""

    key: str  # without halfv.
    type: int  # in a GGUF
    help: str  # of the flag of `halfv profile add`
    asked: str | bool = False  # commands that run a model have the flag too, and the Python API; its other help there
    range: Range | None = None  # where it alone decides that; what depends on other keys is in Profile.validate
    names: tuple[str, ...] = ()  # of text, in the order of the enum in halfv.h
    needed: bool = False
    written: bool = False  # also where it is what it would be anyway

    @property
    def name(self) -> str:
        """Of the field, in Python and in C."""
        return self.key.replace(".", "_")

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def metavar(self) -> str:
        """Of the flag's value."""
        of_range = self.range.metavar if self.range else ""
        return METAVARS.get(self.type) or of_range or "|".join(self.names)

    def check(self, value: Any) -> None:
        """It is one of the names, or in the range, as is every item of a list."""
        if self.names and value not in self.names:
            raise complaint(self.key, quote(value), "it must be " + " or ".join(f'"{name}"' for name in self.names))
        if self.range and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                if not self.range.low <= number <= self.range.high:
                    raise complaint(self.key, number, f"it must be {self.range.rule}")


# in the order of help, and of complaints
_ALL = (
    Key("ivr.layer", UINT32, "first layer of stage II", needed=True),
    Key(
        "ivr.keep", FLOAT32, "share of the visual tokens kept from stage II, above 0 and at most 1",
        range=PART, needed=True,
    ),
    Key("ivr.anchors", FLOAT32, "share of the kept that attention chooses, 0 to 1", range=SHARE, needed=True),
    Key(
        "ivr.query", STRING, "whose attention that is: of the prompt's last token, or all the question's",
        names=("last", "question"),
    ),
    Key(
        "ivr.bias", FLOAT32, "add BETA times log n to attention to a kept token that stands for n, 0 to 1; 0: off",
        range=BETA,
    ),
    Key("ssr.layer", UINT32, "first layer of stage III; the number of layers: no stage III", needed=True),
    Key(
        "ssr.update", FLOAT32, "share of the visual tokens still updated in stage III, 0 to 1",
        range=SHARE, needed=True,
    ),
    Key(
        "ssr.rest", STRING, "what happens to the others in stage III",
        names=("frozen", "dropped"), needed=True,
    ),
    Key("min_visual_tokens", UINT32, "leave pictures of fewer tokens whole", written=True),
    Key(
        "pixel.tau", FLOAT32,
        "spare the encoder patches within so many of 255 levels of what their neighbours predict; 0: equal ones",
        "spare Qwen-VL's encoder patches within so many of 255 levels of what their neighbours predict (0: equal)",
        range=LEVELS,
    ),
    Key(
        "frames.tau", FLOAT32,
        "spare it patches within so many levels of what the picture before showed in the same place; 0: equal ones",
        "and, of several pictures in one message, patches within so many of what the one before showed there",
        range=LEVELS,
    ),
    Key(
        "input.keep", FLOAT32, "share of a picture's visual tokens given to the language model; 1: all",
        "of a picture's visual tokens, given to the language model: any model and encoder (1: all)",
        range=PART, written=True,
    ),
    Key(
        "input.merge", FLOAT32, "average rows of a picture that are alike until this share is left; 1: none",
        "of a picture's rows, left when alike ones are averaged before that (1: all)",
        range=PART,
    ),
    Key(
        "encoder.layer", UINT32, "first layer of the encoder that sees only some of a picture",
        asked=True, range=FROM_1,
    ),
    Key(
        "encoder.keep", FLOAT32, "share of a picture that these layers of the encoder see; 1: all",
        "of a picture, seen by these layers of the encoder (1: all)",
        range=PART,
    ),
    Key(
        "ffn.layer", UINT32, "from this layer on visual tokens take only the first channels of feed-forward networks",
        asked=True,
    ),
    Key("ffn.keep", FLOAT32, "share of those channels; 1: all", "of those channels (1: all)", range=PART),
    Key(
        "heads.layer", UINT32, "from this layer on visual tokens have only the first groups of attention heads",
    ),
    Key("heads.keep", FLOAT32, "share of those groups; 1: all", range=PART),
    Key(
        "neighbours.layer", UINT32,
        "from this layer on visual tokens see of their picture only neighbours before them",
    ),
    Key("neighbours.width", UINT32, "rows and columns of the square that those are in, odd; 0: all are seen"),
    Key("further.layers", WHOLES, "first layers of stages behind III", asked=True),
    Key(
        "further.keep", ARRAY, "share of the visual tokens that each of those sees; 0: text alone",
        "of the visual tokens, seen by each of those (0: text alone)",
        range=SHARE,
    ),
    Key(
        "image.loss", FLOAT32, "make pictures smaller while no part loses more of its pixels than this; 0: never",
        "make pictures smaller as far as no part of them loses more of its pixels, 0.15 say (0: never)",
        range=SHARE,
    ),
    Key(
        "visual_share", FLOAT32, "share of the context set aside for pictures: less KV memory, less room for text",
        "of the context, set aside for pictures: less KV memory, less room for text (0: room for text everywhere)",
        range=SHARE, written=True,
    ),
)  # fmt: skip
KEYS = {key.name: key for key in _ALL}
ASKED = {key.name: key for key in _ALL if key.asked}  # what commands and the Python API take in place of a profile's
# a layer, and how much of something there is from it on: they are written together
_PAIRS = [
    (first.name, second.name)
    for first, second in pairwise(_ALL)
    if first.key.endswith((".layer", ".layers")) and not first.needed
]
PARTNERS = dict(_PAIRS) | {second: first for first, second in _PAIRS}

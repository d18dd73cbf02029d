"""From tokens to what a reader gets: whole characters, and never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

HALF = "\ufffd"  # what a decoder gives for half a character


class AnswerText:
    """The text of an answer as it grows."""

    def __init__(self, stop: Sequence[str]):
        self.whole = ""  # all that was written, up to a stop string
        self.given = ""  # what a reader has of it
        self.is_stopped = False  # at a stop string
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, raw: bytes, final: bool = False) -> None:
        """Write the bytes of a token; `final`: no more come, so that half a character is one that is broken."""
        start = max(len(self.whole) - self._longest + 1, 0)  # what stands before was searched
        self.whole += self._decoder.decode(raw, final)
        cut = min((at for stop in self._stop if (at := self.whole.find(stop, start)) >= 0), default=-1)
        if cut >= 0:
            self.whole, self.is_stopped = self.whole[:cut], True

    def take(self, final: bool = False) -> str:
        """What is new for a reader: without an end that may be the beginning of a stop string, until it is final."""
        end = len(self.whole) if final or self.is_stopped else len(self.whole) - self._held_back()
        piece = self.whole[len(self.given) : end]
        self.given += piece
        return piece

    def _held_back(self) -> int:
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.whole)), longest, -1):
                if self.whole.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    @property
    def is_tokenizable(self) -> bool:
        """Whether it is the text of its tokens: it is not when it was cut at a stop string or within a character."""
        return not self.is_stopped and not self.whole.endswith(HALF)

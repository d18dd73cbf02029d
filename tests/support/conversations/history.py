"""What one sequence was told, as a list that can be told again to a context that holds nothing else."""

from __future__ import annotations

import collections
from dataclasses import dataclass

MIN_VISUAL_TOKENS = 12


@dataclass(frozen=True)
class Picture:
    """A random picture; its tokens are rows x cols."""

    seed: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Row:
    """A token of text, or the token `index` of a picture, as it was fed."""

    value: int | Picture
    pos: int  # for M-RoPE the temporal position, which a whole picture shares
    index: int = -1
    announced: bool = False  # halfv_begin_media was called before it
    pruning: bool = True  # the setting it was fed under


@dataclass(frozen=True)
class Asked:
    """The last `size` rows came in one batch, which wanted output of these of them."""

    size: int
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Removed:
    """The rows at positions [start, stop) left, while later ones stayed."""

    start: int
    stop: int


@dataclass(frozen=True)
class Shifted:
    """The rows from `start` on moved."""

    start: int
    by: int


@dataclass(frozen=True)
class Adapted:
    """LoRA adapters and control vectors changed to these, by number. What waited went on under this setting."""

    adapters: int
    pruning: bool


@dataclass(frozen=True)
class Prepared:
    """halfv_prepare was called."""


@dataclass(frozen=True)
class ToppedUp:
    """halfv_topup was called."""


Event = Row | Asked | Removed | Shifted | Adapted | Prepared | ToppedUp


class History:
    """Told in order; `living` says which rows are still there, and where."""

    def __init__(self, mrope: bool) -> None:
        self.mrope = mrope
        self.events: list[Event] = []
        self.living: list[tuple[int, int]] = []  # (index of the event, position now)
        self.lost_question = False  # one was removed, and none was asked since

    def copy(self) -> History:
        twin = History(self.mrope)
        twin.events, twin.living, twin.lost_question = list(self.events), list(self.living), self.lost_question
        return twin

    def row(self, place: int) -> Row:
        row = self.events[self.living[place][0]]
        assert isinstance(row, Row)
        return row

    @property
    def last_pos(self) -> int:
        return self.living[-1][1] if self.living else -1

    @property
    def next_pos(self) -> int:
        """Where text or a new picture goes on."""
        if not self.living:
            return 0
        last = self.row(-1).value
        if self.mrope and isinstance(last, Picture):
            return self.last_pos + max(last.rows, last.cols)
        return self.last_pos + 1

    @property
    def ends_in_picture(self) -> bool:
        return bool(self.living) and isinstance(self.row(-1).value, Picture)

    def feed(self, rows: list[Row], outputs: tuple[int, ...]) -> None:
        for row in rows:
            self.living.append((len(self.events), row.pos))
            self.events.append(row)
        if outputs:
            self.events.append(Asked(len(rows), outputs))
            self.lost_question = False

    def note(self, event: Adapted | Prepared | ToppedUp) -> None:
        self.events.append(event)

    def can_cut(self, start: int) -> bool:
        """Whether what is left could be told again: no row may go that was there when adapters changed."""
        kept = [index for index, pos in self.living if pos < start]
        lost = self.events[kept[-1] + 1 :] if kept else []
        first = next((i for i, event in enumerate(lost) if isinstance(event, Row)), len(lost))
        if any(isinstance(event, Adapted | Prepared | ToppedUp) for event in lost[first:]):
            return False
        asked = next((i for i, event in enumerate(lost) if isinstance(event, Asked)), len(lost))
        return not (self.has_small_picture and any(isinstance(event, Removed) for event in lost[asked:]))

    def can_remove(self) -> bool:
        """Whether rows may leave the middle."""
        return not (self.lost_question and self.has_small_picture)

    @property
    def has_small_picture(self) -> bool:
        """One that no question prunes: with its first one it has gone through all layers for good. Told again
        without that question it would still wait, and not have seen what leaves the middle meanwhile."""
        tokens = collections.Counter(row.value for row in map(self.row, range(len(self.living))))
        return any(isinstance(value, Picture) and n < MIN_VISUAL_TOKENS for value, n in tokens.items())

    def cut(self, start: int) -> None:
        """All rows from this position on leave, and no trace of them stays."""
        self.living = [(index, pos) for index, pos in self.living if pos < start]
        if not self.living:
            self.events = [event for event in self.events if isinstance(event, Adapted)]
            self.lost_question = False
            return
        end = self.living[-1][0] + 1
        asked = [event for event in self.events[end : end + 1] if isinstance(event, Asked)]
        moves = [event for event in self.events[end:] if not isinstance(event, Row | Asked)]
        self.lost_question |= any(isinstance(event, Asked) for event in self.events[end + len(asked) :])
        self.events = self.events[:end] + asked + moves

    def remove(self, start: int, stop: int) -> None:
        """Rows in the middle leave: later ones were told when these were there."""
        if self.last_pos < stop:
            self.cut(start)
        else:
            self.living = [(index, pos) for index, pos in self.living if not start <= pos < stop]
            self.events.append(Removed(start, stop))

    def shift(self, start: int, by: int) -> None:
        self.living = [(index, pos + by if pos >= start else pos) for index, pos in self.living]
        self.events.append(Shifted(start, by))

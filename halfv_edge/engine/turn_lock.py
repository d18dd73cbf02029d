"""A lock for threads that each take it again and again: whoever waits comes next."""

from __future__ import annotations

import threading


class TurnLock:
    """Like threading.RLock; but one that gives it back and wants it again lets those that wait go first."""

    def __init__(self) -> None:
        # reentrant, because a garbage collection in __enter__ may close a chat in there
        self._door = threading.RLock()  # held by the one that comes next
        self._room = threading.RLock()
        self._owner = 0
        self._depth = 0

    def __enter__(self) -> TurnLock:
        me = threading.get_ident()
        if self._owner != me:
            with self._door:
                self._room.acquire()
            self._owner = me
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
            self._room.release()

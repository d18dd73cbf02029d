"""What llama.cpp says: kept for error texts, and passed to stderr only when asked.

There is one log per process. What is kept is kept apart for each thread, so that one does not read another's errors.
"""

from __future__ import annotations

import atexit
import collections
import re
import sys
import threading
import weakref

from halfv_cpp.ggml_h import ggml_log_callback
from halfv_cpp.llama_h import llama_log_set
from halfv_cpp.mtmd_helper_h import mtmd_helper_log_set

LAST_LINES = 200
# words that a line with the reason has, and words of a full memory
TELLING = re.compile(r"error|fail|unable|cannot|could not|not supported|invalid|mismatch", re.IGNORECASE)
FULL = re.compile(r"out of memory|failed to allocate|unable to allocate|cannot allocate|bad_alloc", re.IGNORECASE)
FUNCTION = re.compile(r"^(\w+: )+")  # what llama.cpp begins its lines with


class _Kept(threading.local):
    def __init__(self) -> None:
        self.lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)


_kept = _Kept()


class Showing:
    """While any of these is held and not closed, the log goes to stderr as well."""

    def __init__(self) -> None:
        _showing.add(self)

    def close(self) -> None:
        _showing.discard(self)


_showing: weakref.WeakSet[Showing] = weakref.WeakSet()


def _keep(_level: int, text: bytes, _user: object) -> None:
    line = text.decode("utf-8", "replace")
    _kept.lines.append(line)
    if _showing:
        sys.stderr.write(line)


_collect = ggml_log_callback(_keep)  # lives as long as llama.cpp may call it


def capture() -> None:
    """Take over the logs of llama.cpp and mtmd."""
    atexit.unregister(_let_go)
    atexit.register(_let_go)
    llama_log_set(_collect, None)
    mtmd_helper_log_set(_collect, None)


def _let_go() -> None:
    """Native code must not call into an interpreter that is gone."""
    nothing = ggml_log_callback(0)
    llama_log_set(nothing, None)
    mtmd_helper_log_set(nothing, None)


def clear() -> None:
    """Forget what was said to this thread."""
    _kept.lines.clear()


def text() -> str:
    """What was said to this thread since clear()."""
    return "".join(_kept.lines)


def last_words() -> str:
    """The line that most likely says what went wrong."""
    lines = [line.strip() for line in text().splitlines() if line.strip()]
    telling = [line for line in lines if TELLING.search(line)]
    line = (telling[:1] or lines[-1:] or ["llama.cpp gives no reason"])[0]
    return FUNCTION.sub("", line).rstrip(".")


def out_of_memory() -> bool:
    return FULL.search(text()) is not None

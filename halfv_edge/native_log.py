"""What llama.cpp says: kept for error texts, and passed to stderr only when asked."""

from __future__ import annotations

import atexit
import collections
import ctypes
import re
import sys

from halfv_edge import libs

llama_cpp = libs.load()

from llama_cpp import mtmd_cpp  # noqa: E402

LAST_LINES = 200
# words that a line with the reason has, and words of a full memory
TELLING = re.compile(r"error|fail|unable|cannot|could not|not supported|invalid|mismatch", re.IGNORECASE)
FULL = re.compile(r"out of memory|failed to allocate|unable to allocate|cannot allocate|bad_alloc", re.IGNORECASE)
FUNCTION = re.compile(r"^(\w+: )+")  # what llama.cpp begins its lines with

_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
_shown = False


@llama_cpp.llama_log_callback
def _collect(_level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", "replace")
    _lines.append(line)
    if _shown:
        sys.stderr.write(line)


def capture(show: bool = False) -> None:
    """Take over the logs of llama.cpp and mtmd, which are one per process. `show`: on stderr as well."""
    global _shown
    _shown = show
    llama_cpp.llama_log_set(_collect, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_helper_log_set(_collect, ctypes.c_void_p(0))


@atexit.register
def _let_go() -> None:
    """Native code must not call into an interpreter that is gone."""
    nothing = llama_cpp.llama_log_callback(0)
    llama_cpp.llama_log_set(nothing, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_helper_log_set(nothing, ctypes.c_void_p(0))


def clear() -> None:
    _lines.clear()


def text() -> str:
    """What was said since clear()."""
    return "".join(_lines)


def last_words() -> str:
    """The line that most likely says what went wrong."""
    lines = [line.strip() for line in text().splitlines() if line.strip()]
    telling = [line for line in lines if TELLING.search(line)]
    line = (telling[:1] or lines[-1:] or ["llama.cpp gives no reason"])[0]
    return FUNCTION.sub("", line).rstrip(".")


def out_of_memory() -> bool:
    return FULL.search(text()) is not None

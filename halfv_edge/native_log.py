"""What llama.cpp says: kept for error texts, and passed to stderr only when asked."""

from __future__ import annotations

import collections
import ctypes
import sys

from halfv_edge import libs

llama_cpp = libs.load()

LAST_LINES = 200

verbose = False
_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)


@llama_cpp.llama_log_callback
def _collect(_level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", "replace")
    _lines.append(line)
    if verbose:
        sys.stderr.write(line)


def capture(show: bool = False) -> None:
    """Take over the logs of llama.cpp and mtmd: they are one per process. `show`: on stderr as well."""
    global verbose
    from llama_cpp import mtmd_cpp

    verbose = show
    llama_cpp.llama_log_set(_collect, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_helper_log_set(_collect, ctypes.c_void_p(0))


def clear() -> None:
    _lines.clear()


def text() -> str:
    """What was said since clear()."""
    return "".join(_lines)


def last_words() -> str:
    """The line that most likely says what went wrong, without its prefix."""
    lines = [line.strip() for line in text().splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line.lower() for word in ("error", "fail", "unable", "cannot"))]
    return (telling or lines or ["no reason given"])[0 if telling else -1].rstrip(".")


def out_of_memory() -> bool:
    said = text().lower()
    return any(
        words in said for words in ("out of memory", "failed to allocate", "unable to allocate", "alloc_tensor_range")
    )

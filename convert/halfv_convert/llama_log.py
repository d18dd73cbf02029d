"""What libllama and libmtmd log, for their errors and their progress."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from halfv_cpp import ggml_h, llama_h, mtmd_h

_kept: list[Any] = []  # the libraries go on calling it


def collect(follow: Callable[[str], None] = lambda line: None) -> list[str]:
    """A list that grows by what is logged from now on; it all goes to stderr, and to `follow`, as well."""
    pieces: list[str] = []

    def listen(_level: int, text: bytes, _user: Any) -> None:
        piece = text.decode("utf-8", "replace")
        sys.stderr.write(piece)
        pieces.append(piece)
        follow(piece)

    on_text = ggml_h.ggml_log_callback(listen)
    _kept.append(on_text)
    llama_h.llama_log_set(on_text, None)
    mtmd_h.mtmd_log_set(on_text, None)
    return pieces


def first_error(pieces: list[str]) -> str:
    """The line that tells of the error, without its origin."""
    text = "".join(pieces)
    for pattern in (
        r"error loading model(?: \w+)?: (?:\w+: )?(.+)",
        r"(unable to find tensor .+)",
        r"failed to quantize: (.+)",
        r"((?:error|failed)\b.*)",
    ):
        if match := re.search(pattern, text):
            return match[1].rstrip(" .")
    return "it does not say why"

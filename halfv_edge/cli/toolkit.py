"""Typing with prompt_toolkit, where it is installed: several lines, history, completion, also on Windows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.patch_stdout import patch_stdout

from halfv_edge import files
from halfv_edge.errors import HalfVError

Complete = Callable[[str], tuple[str, list[str]]]  # the last word of a line, and what it may become


class Toolkit:
    """A prompt that what other threads say appears above."""

    def __init__(self, complete: Complete, history: Path, most: int, quotes: str, color: bool):
        """`most`: lines of history. Text that begins with `quotes` goes on until they close."""
        self._session: PromptSession[str] = PromptSession(
            history=_Lines(history, most),
            completer=_Words(complete),
            complete_while_typing=False,
            multiline=True,
            key_bindings=_keys(quotes),
            color_depth=None if color else ColorDepth.MONOCHROME,
            prompt_continuation=". ",
        )

    def read(self, prompt: str, bold: bool) -> str:
        """KeyboardInterrupt at Ctrl-C, EOFError at Ctrl-D."""
        with patch_stdout(raw=True):
            return self._session.prompt([("bold" if bold else "", prompt)])


def _keys(quotes: str) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def enter(event: KeyPressEvent) -> None:
        text = event.current_buffer.text.lstrip()
        if text.startswith(quotes) and quotes not in text[len(quotes) :]:
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Words(Completer):
    def __init__(self, complete: Complete):
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        word, found = self._complete(document.current_line_before_cursor)
        return [Completion(name, -len(word)) for name in found]


class _Lines(History):
    """The file that readline keeps: a question per line, so that one of several lines becomes one for the next time."""

    def __init__(self, path: Path, most: int):
        super().__init__()
        self._path = path
        self._most = most

    def load_history_strings(self) -> Sequence[str]:
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return lines[: -self._most - 1 : -1]

    def store_string(self, string: str) -> None:
        lines = [*reversed(self.load_history_strings()), " ".join(string.splitlines())][-self._most :]
        with contextlib.suppress(HalfVError, OSError):  # a folder that cannot be written is no reason to complain
            files.write_private(self._path, "".join(f"{line}\n" for line in lines).encode())

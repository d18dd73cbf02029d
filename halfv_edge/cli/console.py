"""What goes to the terminal: answers on stdout, everything else on stderr, and keys from the person."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from halfv_edge import files

if TYPE_CHECKING:
    from halfv_edge.cli.toolkit import Toolkit

DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
CLEAR_LINE = "\r\x1b[K"
# An answer can hold what a picture or a prompt made the model say: on a terminal it must not move the cursor or worse.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HISTORY_LINES = 1000
WAKE_SEC = 0.1
QUOTES = '"""'
PROMPT = "> "


class Console:
    """stdout and stderr of one command."""

    def __init__(self, color: bool | None = None):
        """color: None finds out."""
        self.out_is_terminal = sys.stdout.isatty()
        self.err_is_terminal = sys.stderr.isatty()
        if color is None:
            color = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.color = color and self.err_is_terminal
        self._status = ""
        self._lock = threading.RLock()
        self._reading: str | None = None  # the prompt, while a line is being typed
        self._readline: ModuleType | None = None
        self._toolkit: Toolkit | None = None
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # in tests it may be something simpler
                stream.reconfigure(errors="replace")

    def write(self, text: str) -> None:
        """A piece of an answer."""
        with self._lock:
            self.clear_status()
            sys.stdout.write(CONTROL.sub("\ufffd", text) if self.out_is_terminal else text)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """A line for the person; one that is typing sees it above what is typed."""
        with self._lock:
            self.clear_status()
            if self._reading is not None and self.err_is_terminal and self._toolkit is None:
                typed = self._readline.get_line_buffer() if self._readline else ""
                sys.stderr.write(f"{CLEAR_LINE}{text}\n{self._reading}{typed}")
            else:
                sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def dim(self, text: str) -> None:
        """A line that is not important."""
        self.say(f"{DIM}{text}{PLAIN}" if self.color else text)

    def status(self, text: str) -> None:
        """What is being waited for, on a line that goes away."""
        with self._lock:
            if self.err_is_terminal and self.out_is_terminal and text != self._status:
                self._status = text
                sys.stderr.write(f"{CLEAR_LINE}{DIM}{text}{PLAIN}" if self.color else f"\r{text}\x1b[K")
                sys.stderr.flush()

    def clear_status(self) -> None:
        with self._lock:
            if self._status:
                self._status = ""
                sys.stderr.write(CLEAR_LINE)
                sys.stderr.flush()

    #
    # typing
    #

    @property
    def interactive(self) -> bool:
        return sys.stdin.isatty() and self.err_is_terminal

    def edit_lines(self, commands: Sequence[str], history: Path) -> None:
        """History, editing keys, completion of commands and files: by prompt_toolkit or as far as readline has them."""

        def complete(line: str) -> tuple[str, list[str]]:
            return _completions(line, commands)

        with contextlib.suppress(ImportError):
            from halfv_edge.cli.toolkit import Toolkit

            if self.out_is_terminal and os.environ.get("TERM") != "dumb":
                self._toolkit = Toolkit(complete, history, HISTORY_LINES, QUOTES, self.color)
                return
        try:
            import readline
        except ImportError:
            return
        self._readline = readline
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
        readline.set_history_length(HISTORY_LINES)
        readline.set_completer_delims(" \t\n")
        readline.set_completer(lambda _text, state: [*complete(readline.get_line_buffer())[1], None][state])
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

    def save_lines(self, history: Path) -> None:
        """For the next time; a folder that cannot be written is no reason to complain."""
        if self._readline:
            with contextlib.suppress(OSError):
                history.parent.mkdir(parents=True, exist_ok=True)
                self._readline.write_history_file(history)
                history.chmod(0o600)

    def read(self) -> str:
        """A question or a command; several lines between triple quotes. EOFError at the end."""
        text = self._toolkit.read(PROMPT, bold=self.color) if self._toolkit else self._line(PROMPT)
        if not text.lstrip().startswith(QUOTES):
            return text.strip()
        text = text.lstrip()[len(QUOTES) :]
        while QUOTES not in text:
            text += "\n" + self._line(". ")
        return text.partition(QUOTES)[0].strip()

    def _line(self, prompt: str) -> str:
        if not self.interactive:
            return input()
        if not self.out_is_terminal:  # then Python reads without readline, and would prompt on stdout
            sys.stderr.write(prompt)
            sys.stderr.flush()
            return input()
        self._reading = prompt
        try:
            with _signals_noticed():
                # readline counts columns, so it must know what takes none
                return input(f"\x01{BOLD}\x02{prompt}\x01{PLAIN}\x02" if self.color and self._readline else prompt)
        finally:
            self._reading = None


@contextlib.contextmanager
def _signals_noticed() -> Iterator[None]:
    """CPython waits for keys without looking at a signal that came while it handled one: wake it to look."""
    if not hasattr(signal, "setitimer"):  # Windows, where input() does not wait like that
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, WAKE_SEC, WAKE_SEC)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def history_path() -> Path:
    return files.state_folder() / "chat_history"


def _completions(line: str, commands: Sequence[str]) -> tuple[str, list[str]]:
    """The last word of a line, and what it may become."""
    word = line.rsplit(maxsplit=1)[-1] if line and not line[-1].isspace() else ""
    if line.startswith("/") and " " not in line:
        return word, [command for command in commands if command.startswith(word)]
    names = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*"))
    return word, [name + "/" * os.path.isdir(name) for name in names]

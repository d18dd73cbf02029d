"""A pseudo-terminal with `halfv` in it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

ROWS, COLUMNS = 50, 200
PROGRAM = """
import fcntl, sys, termios
if {plain}:
    sys.modules["prompt_toolkit"] = None  # as if it were not installed
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches this process
from halfv_edge.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""


class Terminal:
    """What a person sees and types."""

    def __init__(self, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None, plain: bool = True):
        """plain: without prompt_toolkit."""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(plain=plain), *map(str, args)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=os.environ | {"TERM": "xterm", "NO_COLOR": "1", "XDG_STATE_HOME": str(cwd)} | dict(env or {}),
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = b""
        self._at = 0  # what was expected so far

    def expect(self, *texts: str, seconds: float = 60) -> str:
        """Wait for texts, one after the other; what came up to the end of the last one."""
        start = self._at
        for text in texts:
            deadline = time.monotonic() + seconds
            while (found := self.seen.find(text.encode(), self._at)) < 0:
                assert self._read(deadline - time.monotonic()), f"no {text!r} in:\n{self.text}"
            self._at = found + len(text.encode())
        return self.seen[start : self._at].decode("utf-8", "replace")

    @property
    def text(self) -> str:
        return self.seen.decode("utf-8", "replace")

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            more = os.read(self._ours, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.seen += more
        return bool(more)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self, *texts: str, seconds: float = 20) -> None:
        """Ctrl-C until the program says so: CPython can lose one that comes in the same instant as something else."""
        for attempt in range(3):
            self.type("\x03")
            try:
                self.expect(texts[0], seconds=seconds)
                break
            except AssertionError:
                if attempt == 2:
                    raise
        self.expect(*texts[1:])

    def leave(self, twice_sec: float) -> None:
        """Ctrl-C twice: as often as a busy machine needs to handle two of them within twice_sec."""
        for _ in range(20):
            self.type("\x03")
            time.sleep(twice_sec / 4)
            if self.process.poll() is not None:
                break

    def code(self, seconds: float = 30) -> int:
        """The exit code, once everything is read."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(deadline - time.monotonic(), 0.1))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

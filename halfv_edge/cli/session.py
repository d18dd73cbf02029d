"""A conversation at a terminal: one thread computes, the other one reads keys."""

from __future__ import annotations

import difflib
import math
import os
import queue
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from halfv_edge.cli import answer_stats, console, errors, flags
from halfv_edge.cli.console import Console
from halfv_edge.draw import png as token_png
from halfv_edge.engine.chat import Chat
from halfv_edge.engine.images import Picture
from halfv_edge.errors import HalfVError

POLL_SEC = 0.1  # how soon Ctrl-C is noticed where a wait cannot be interrupted
SHOW_AFTER_SEC = 0.5  # waits longer than this are explained
TWICE_SEC = 2.0  # Ctrl-C twice within this leaves
FILE_URL = "file://"  # on Windows one slash more
GIVE_UP_SEC = 1.0  # for native code to notice that it should stop, when the program ends

HELP = """\
/image FILE ...  add pictures to the next question; so does a file's name alone
/stats           what the last answer took
/tokens OUT.png  draw which tokens of each picture were kept
/reset           forget the conversation and its pictures
/help            this
/quit            or Ctrl-D
Several lines: between triple quotes. Ctrl-C stops an answer."""
COMMANDS = ("/image", "/stats", "/tokens", "/reset", "/help", "/quit")


@dataclass(slots=True)
class Reply:
    """What became of a question."""

    text: str = ""
    wait_sec: float = 0.0  # for what was being done when it was asked
    asked: bool = False  # it is part of the conversation now
    interrupted: bool = False
    dropped: bool = False  # not asked, as a picture that it waited for failed
    error: BaseException | None = None


class Worker:
    """One thread that does one thing after the other."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._left = 0
        self._idle = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, job: Callable[[], None]) -> None:
        with self._idle:
            self._left += 1
        self._jobs.put(job)

    def wait(self, seconds: float | None = None) -> bool:
        """Until everything is done; False when it takes longer."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._left, seconds)

    def close(self) -> None:
        """Nothing more will come."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException:  # a bug: show it, and stay alive for what waits
                traceback.print_exc()
            with self._idle:
                self._left -= 1
                self._idle.notify_all()


class Session:
    """A chat, its pictures, and the thread that they are prepared and answered in."""

    def __init__(
        self,
        chat: Chat,
        out: Console,
        sampling: dict[str, Any],
        image_max_tokens: int | None = None,
        on_asked: Callable[[], None] = lambda: None,
    ):
        """`on_asked` is called when the conversation has become longer."""
        self.chat = chat
        self.out = out
        self.sampling = sampling
        self.pictures = chat.pictures  # that the chat has, in its order
        self.n_asked = len(self.pictures)  # of them in questions that were answered
        self.wait_sec = 0.0  # of the last answer
        self.worker = Worker()
        self._image_max_tokens = image_max_tokens
        self._on_asked = on_asked
        self._doing = ""  # what is being waited for
        self._failed: list[HalfVError] = []

    #
    # work, in the worker's thread
    #

    def give(self, picture: Picture) -> None:
        """Encode and prepare a picture in the background; nobody types into a script, so there it is waited for."""
        self.worker.submit(lambda: self._prepare(picture))
        if not self.out.interactive:
            self.worker.wait()
            if self._failed:
                raise self._failed[0]

    def _prepare(self, picture: Picture) -> None:
        try:
            self._add(picture)
        except HalfVError as error:
            self._failed.append(error)
            if self.out.interactive:
                self.out.say(errors.in_words(error))

    def _add(self, picture: Picture) -> None:
        self._doing = f"reading {picture.name}"
        self.chat.add_image(picture)
        self.pictures.append(picture)

    def ask(self, question: str, pictures: Sequence[Picture] = (), write: bool = True) -> Reply:
        """Answer on stdout, from the main thread. Ctrl-C stops the answer."""
        reply, n_failed = Reply(), len(self._failed)
        pieces: queue.Queue[str | None] = queue.Queue()
        cancelled, begun = threading.Event(), threading.Event()
        start = time.perf_counter()

        def answer() -> None:
            made = None
            begun.set()
            reply.dropped = len(self._failed) > n_failed
            try:
                if cancelled.is_set() or reply.dropped:
                    return
                unprepared = pictures
                if self.chat.mode == "prepare":
                    for picture in pictures:
                        self._add(picture)
                    unprepared = ()
                self._doing = f"reading {', '.join(p.name for p in unprepared) or 'the question'}"
                reply.wait_sec = time.perf_counter() - start
                with self.chat.ask(question, unprepared, **self.sampling) as made:
                    for piece in made if not cancelled.is_set() else ():  # ask() forgets a stop that came before it
                        pieces.put(piece)
            except BaseException as error:
                reply.error = error
            finally:
                reply.asked = made is not None and made.stats is not None
                self._doing = ""
                pieces.put(None)

        def stop(_signal: int, _frame: object) -> None:
            cancelled.set()
            if begun.is_set():
                self.chat.stop()

        before = signal.signal(signal.SIGINT, stop)
        try:
            self.worker.submit(answer)
            while (piece := self._next(pieces, start, stopping=cancelled.is_set())) is not None:
                if cancelled.is_set() and not begun.is_set():
                    break  # pictures go on being prepared for the next question
                reply.text += piece
                if write and piece:
                    self.out.write(piece)
            if write and reply.text:
                self.out.write("\n")
        finally:
            signal.signal(signal.SIGINT, before)
            self.out.clear_status()
        reply.interrupted = cancelled.is_set()
        if reply.asked:
            self.pictures += pictures if self.chat.mode == "exact" else ()
            self.n_asked = len(self.pictures)
            self.wait_sec = reply.wait_sec
            self._on_asked()
        return reply

    def _next(self, pieces: queue.Queue[str | None], start: float, stopping: bool) -> str | None:
        """The next piece of an answer, "" when there is none yet; a long wait is explained."""
        try:
            return pieces.get(timeout=POLL_SEC)
        except queue.Empty:
            waited = time.perf_counter() - start
            if waited > SHOW_AFTER_SEC and self._doing:
                share = self.chat.runtime.encoder.share_done
                encoded = f", {100 * share:.0f}% through the encoder" if share else ""
                self.out.status(f"{'stopping, ' if stopping else ''}{self._doing}{encoded}: {waited:.0f} s")
            return ""

    def leave(self, code: int) -> int:
        """Native code that cannot be stopped, an encoder's, does not keep the program from ending."""
        self.chat.stop()
        if not self.worker.wait(GIVE_UP_SEC):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        self.worker.close()
        return code

    def report(self) -> None:
        """The dim line after an answer."""
        maps = self.chat.token_maps
        why = answer_stats.why_whole(self.chat.runtime, maps)
        self.out.dim(answer_stats.one_line(self.chat.stats, self.wait_sec, why))
        if note := answer_stats.size_note(self._image_max_tokens, maps):
            self.out.say(note)

    #
    # the conversation
    #

    def converse(self) -> int:
        """Until the person leaves; the exit code."""
        if self.out.interactive:
            history = console.history_path()
            self.out.edit_lines(COMMANDS, history)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs start with it ignored
            self.out.dim("Ask about the pictures. /help lists commands, Ctrl-D leaves.")
            code = self._loop()
            self.out.save_lines(history)
        else:
            code = self._script()
        return self.leave(code)

    def _loop(self) -> int:
        interrupted = -math.inf
        while True:
            try:
                line = self.out.read()
            except EOFError:
                self.out.say("")
                return 0
            except KeyboardInterrupt:
                self.out.say("")
                if time.monotonic() - interrupted < TWICE_SEC:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient third one must not break leaving
                    return 130
                interrupted = time.monotonic()
                self.out.dim("(Ctrl-C again leaves, and so does Ctrl-D)")
                continue
            try:
                if not self._take_line(line):
                    return 0
            except HalfVError as error:
                self.out.say(errors.in_words(error))
            except KeyboardInterrupt:  # while a command waited
                self.out.say("")

    def _script(self) -> int:
        """Questions and commands from a pipe or a file: one per line, and the first mistake ends it."""
        while True:
            try:
                if not self._take_line(self.out.read()):
                    return 0
            except EOFError:
                return 0

    def _take_line(self, line: str) -> bool:
        """One question or command; False to leave."""
        if not line:
            return True
        command, _, rest = line.partition(" ")
        if command == "/quit" or line in ("/exit", "/bye"):
            return False
        if command in COMMANDS:
            getattr(self, f"_{command[1:]}")(rest.strip())
            return True
        if (dropped := _paths(line)) and all(map(os.path.isfile, dropped)):
            self._image(line)
            return True
        if line.startswith("/"):
            near = difflib.get_close_matches(command, COMMANDS, 1)
            raise HalfVError(
                f"{command} is not a command: {f'did you mean {near[0]}' if near else '/help lists them'}."
            )
        self._answer(line)
        return True

    def _answer(self, question: str) -> None:
        reply = self.ask(question)
        if reply.error is not None:
            raise reply.error
        if not reply.asked:
            self.out.dim("(not asked: a picture is missing)" if reply.dropped else "(stopped before the answer began)")
            return
        if not reply.text:
            self.out.dim("(an empty answer)")
        if reply.interrupted:
            self.out.dim("(stopped)")
        elif self.chat.stats.stopped == "length":
            self.out.dim(self._cut_off())
        self.report()

    def _cut_off(self) -> str:
        if self.chat.stats.n_generated == self.sampling.get("max_tokens"):
            return "(cut off by --max-tokens)"
        return "(cut off: the context is full; /reset starts over, --ctx makes it larger)"

    def _image(self, rest: str) -> None:
        if not rest:
            raise HalfVError("/image needs a file: /image cat.jpg.")
        for path in _paths(rest):
            picture = flags.read_image(os.path.expanduser(path))
            width, height = picture.image.size
            self.give(picture)
            frames = f", {len(picture.frames)} frames" if picture.frames else ""
            self.out.dim(f"{picture.name}, {width} x {height}{frames}, is part of the next question.")

    def _stats(self, _rest: str) -> None:
        self.worker.wait()
        if not self.chat.stats.stopped:
            raise HalfVError("Nothing was answered yet: ask something first.")
        maps = self.chat.token_maps[: self.n_asked]
        self.out.say(answer_stats.in_full(self.chat.stats, self.wait_sec, self.pictures, maps, self.chat.runtime))

    def _tokens(self, rest: str) -> None:
        paths = _paths(rest)
        if len(paths) != 1:
            raise HalfVError("/tokens needs one file to write: /tokens out.png.")
        self.worker.wait()
        if not self.n_asked:
            raise HalfVError("No picture was asked about yet: tokens are chosen with the question.")
        maps = self.chat.token_maps[: self.n_asked]
        for path in token_png.write(maps, self.pictures, Path(paths[0]).expanduser()):
            self.out.say(f"wrote {path}.")

    def _reset(self, _rest: str) -> None:
        self.chat.stop()
        self.worker.wait()
        self.chat.reset()
        self.pictures, self.n_asked = [], 0
        self.out.say("Forgotten: /image FILE gives a picture again.")

    def _help(self, _rest: str) -> None:
        self.out.say(HELP)


def _paths(text: str) -> list[str]:
    """Names as a shell splits them, or as a terminal pastes dropped files; a lone name may have spaces."""
    if os.path.isfile(os.path.expanduser(text)):
        return [text]
    windows = sys.platform == "win32"
    try:
        words = shlex.split(text, posix=not windows)  # else it would take backslashes out of paths
    except ValueError:
        words = text.split()
    words = [word[1:-1] if windows and word[:1] == word[-1:] == '"' else word for word in words]
    return [unquote(word[len(FILE_URL) + windows :]) if word.startswith(FILE_URL) else word for word in words]

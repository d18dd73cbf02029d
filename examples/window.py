"""A small window: give it a picture, ask about it, read the answer as it is written.

    python examples/window.py -m MODEL.gguf [--mmproj MMPROJ.gguf] [PICTURE]

A picture is opened, pasted, or dropped (that needs `pip install tkinterdnd2`); it is prepared while you type.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import tkinter as tk
from collections.abc import Callable, Sequence
from pathlib import Path
from tkinter import filedialog, font, ttk
from typing import Any

from PIL import Image, ImageGrab, ImageOps, ImageTk

from halfv_edge import HalfVError, Model, draw_token_map
from halfv_edge.engine import images
from halfv_edge.engine.chat import Chat

POLL_MS = 20
PAPER, INK, QUIET, ALERT = "#ffffff", "#1c1c1e", "#6b6b70", "#b00020"


class Window:
    """Tk belongs to one thread and the model to another: jobs go one way, news the other."""

    def __init__(self, root: tk.Tk, load: Callable[[], Model]):
        self.root = root
        self.chat: Chat | None = None
        self.is_busy = False
        self._picture: Image.Image | None = None
        self._map: Image.Image | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._build()
        self._worker = threading.Thread(target=self._work, args=(load,), daemon=True)
        self._worker.start()
        self._set_busy(True, "Loading the model ...")
        self._listen()

    #
    # the Tk thread
    #

    def _build(self) -> None:
        root = self.root
        root.title("HalfV Edge")
        if root.tk.call("tk", "windowingsystem") == "x11":  # elsewhere the default looks native
            ttk.Style(root).theme_use("clam")
        for name in ("TkDefaultFont", "TkTextFont"):
            font.nametofont(name, root).configure(size=11)
        root.geometry("1000x620")
        root.minsize(640, 400)
        root.protocol("WM_DELETE_WINDOW", self.close)
        root.columnconfigure((0, 1), weight=1, uniform="half")
        root.rowconfigure(0, weight=1)

        self.canvas = tk.Canvas(root, background="#ececf0", highlightthickness=0)
        self.canvas.grid(row=0, column=0, sticky="nsew")
        self.canvas.bind("<Configure>", lambda _: self._draw())
        self.canvas.bind("<Button-1>", lambda _: self.choose())

        talk = ttk.Frame(root, padding=10)
        talk.grid(row=0, column=1, sticky="nsew")
        talk.columnconfigure(0, weight=1)
        talk.rowconfigure(0, weight=1)
        self.transcript = tk.Text(talk, wrap="word", state="disabled", relief="flat", padx=10, pady=10)
        self.transcript.configure(background=PAPER, foreground=INK, spacing1=4, font="TkTextFont")
        self.transcript.tag_configure("question", foreground=QUIET, lmargin1=40, lmargin2=40, justify="right")
        self.transcript.grid(row=0, column=0, columnspan=2, sticky="nsew")
        bar = ttk.Scrollbar(talk, command=self.transcript.yview)
        bar.grid(row=0, column=2, sticky="ns")
        self.transcript.configure(yscrollcommand=bar.set)
        self.entry = ttk.Entry(talk, font="TkTextFont")
        self.entry.grid(row=1, column=0, sticky="ew", pady=(10, 0))
        self.entry.bind("<Return>", lambda _: self.ask())
        self.entry.bind("<<Paste>>", self.paste)
        self.button = ttk.Button(talk, text="Ask", command=self.ask)
        self.button.grid(row=1, column=1, columnspan=2, padx=(10, 0), pady=(10, 0))

        below = ttk.Frame(root, padding=(10, 4))
        below.grid(row=1, column=0, columnspan=2, sticky="ew")
        below.columnconfigure(2, weight=1)
        ttk.Button(below, text="Open a picture ...", command=self.choose).grid(row=0, column=0)
        self.shows_map = tk.BooleanVar(root)
        toggle = ttk.Checkbutton(below, text="Kept tokens", variable=self.shows_map, command=self._draw)
        toggle.grid(row=0, column=1, padx=10)
        self.status = ttk.Label(below, anchor="e")
        self.status.grid(row=0, column=2, sticky="ew")
        self.entry.focus_set()

    def choose(self) -> None:
        if name := filedialog.askopenfilename(parent=self.root, title="Open a picture"):
            self.open(name)

    def paste(self, _event: object) -> str | None:
        """A picture, or the name of one; anything else goes into the question as ever."""
        try:
            found = ImageGrab.grabclipboard()
        except (OSError, NotImplementedError):  # no tool for it on this machine
            found = None
        if isinstance(found, list):
            found = found[0] if found else None
        if found is None:
            text = self.root.clipboard_get().strip()
            found = text if text.startswith(("http://", "https://", "data:image/")) or Path(text).is_file() else None
        if found is None:
            return None
        self.open(found)
        return "break"

    def drop(self, names: str) -> None:
        self.open(*self.root.tk.splitlist(names))

    def open(self, *sources: images.Source) -> None:
        if self.is_busy:
            return self._say("Wait for the answer, or stop it.", ALERT)
        self._set_busy(True, "Looking ...")
        self._jobs.put(lambda: self._look(sources))

    def ask(self) -> None:
        question = self.entry.get().strip()
        if self.is_busy:
            return self.chat.stop() if self.chat else None
        if not question:
            return self.entry.focus_set()
        self.entry.delete(0, "end")
        self._write(f"{question}\n", "question")
        self._set_busy(True, "Thinking ...")
        self._jobs.put(lambda: self._answer(question))

    def close(self) -> None:
        if self.chat:
            self.chat.stop()
        self._jobs.put(None)
        self._worker.join()
        self.root.destroy()

    def _listen(self) -> None:
        while not self._news.empty():
            act, values = self._news.get()
            act(*values)
        self.root.after(POLL_MS, self._listen)

    def _set_busy(self, is_busy: bool, text: str = "", colour: str = QUIET) -> None:
        self.is_busy = is_busy
        self.button.configure(text="Stop" if is_busy else "Ask")
        self._say(text, colour)

    def _say(self, text: str, colour: str = QUIET) -> None:
        self.status.configure(text=text, foreground=colour)

    def _write(self, text: str, tag: str = "answer") -> None:
        self.transcript.configure(state="normal")
        self.transcript.insert("end", text, tag)
        self.transcript.configure(state="disabled")
        self.transcript.see("end")

    def _show(self, picture: Image.Image, token_map: Image.Image | None = None) -> None:
        self._picture, self._map = picture, token_map
        self._draw()

    def _draw(self) -> None:
        self.canvas.delete("all")
        width, height = self.canvas.winfo_width(), self.canvas.winfo_height()
        shown = self._map if self.shows_map.get() and self._map else self._picture
        if shown is None:
            hint = "Drop a picture here, paste one, or click"
            self.canvas.create_text(width / 2, height / 2, text=hint, fill=QUIET, width=width - 40)
            return
        fitted = ImageOps.contain(shown, (max(width - 20, 1), max(height - 20, 1)))
        self._image = ImageTk.PhotoImage(fitted, master=self.root)  # Tk does not hold it
        self.canvas.create_image(width / 2, height / 2, image=self._image)

    #
    # the model's thread
    #

    def _tell(self, act: Callable[..., None], *values: Any) -> None:
        self._news.put((act, values))

    def _work(self, load: Callable[[], Model]) -> None:
        try:
            with load() as model, model.chat() as chat:
                self.chat = chat
                self._tell(self._set_busy, False, "Ready")
                while job := self._jobs.get():
                    try:
                        job()
                    except HalfVError as error:
                        self._tell(self._set_busy, False, str(error), ALERT)
        except HalfVError as error:  # there is no model, so nothing can be asked
            self._tell(self._set_busy, True, str(error), ALERT)

    def _look(self, sources: Sequence[images.Source]) -> None:
        for source in sources:
            picture = images.load(source)
            self._tell(self._show, picture.image)
            self.chat.add_image(picture)
        self._tell(self._set_busy, False, "Ask about it")

    def _answer(self, question: str) -> None:
        for piece in self.chat.ask(question):
            self._tell(self._write, piece)
        self._tell(self._write, "\n\n")
        stats = self.chat.stats
        said = f"first token after {stats.ttft_sec:.2f} s, {stats.tokens_per_sec:.0f} tokens/s"
        if stats.n_visual:
            token_map = self.chat.token_maps[-1]
            self._tell(self._show, token_map.image, draw_token_map(token_map))
            said = f"visual tokens {stats.n_visual} \N{RIGHTWARDS ARROW} {stats.n_kept}, {said}"
        self._tell(self._set_busy, False, said)


def make_root(**options: Any) -> tk.Tk:
    """A root window, that pictures can be dropped on where tkinterdnd2 is installed."""
    try:
        from tkinterdnd2 import TkinterDnD
    except ImportError:
        return tk.Tk(**options)
    return TkinterDnD.Tk(**options)


def start(arguments: list[str], **options: Any) -> Window:
    parser = argparse.ArgumentParser(description="Chat about a picture in a window.")
    parser.add_argument("-m", "--model", required=True, help="GGUF of a vision-language model")
    parser.add_argument("--mmproj", help="its vision encoder, if that is not beside it")
    parser.add_argument("picture", nargs="?", help="picture to begin with: a file or a URL")
    given = parser.parse_args(arguments)
    root = make_root(className="HalfV", **options)
    window = Window(root, lambda: Model.load(given.model, given.mmproj))
    if hasattr(root, "drop_target_register"):
        root.drop_target_register("DND_Files")
        root.dnd_bind("<<Drop>>", lambda event: window.drop(event.data))
    if given.picture:
        window._jobs.put(lambda: window._look([given.picture]))
    return window


if __name__ == "__main__":
    start(sys.argv[1:]).root.mainloop()

"""A conversation with `halfv chat`, on a pseudo-terminal."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from halfv_edge.cli import session
from halfv_edge.cli.session import TWICE_SEC
from tests.support.chat_command import chat, talk
from tests.support.terminal import Terminal
from tests.support.vlm import NEXT, QUESTION, picture


def test_conversation(place: Path) -> None:
    with talk(place, "cat.jpg", "--temp", "0", "--max-tokens", "12") as terminal:
        terminal.expect("/help lists commands", "> ")
        terminal.type("/stats\r")  # which waits for the picture
        terminal.expect("halfv: Nothing was answered yet", "\n> ")
        terminal.type(f"{QUESTION}\r")
        first = terminal.expect("100 -> 50 -> 10 visual tokens", "\n> ")
        assert "encoder" in first and "of it before you asked" in first and "cut off by --max-tokens" in first

        terminal.type(f"{NEXT}\r")  # the picture is there already
        second = terminal.expect("visual tokens", "\n> ")
        assert "encoder" not in second and "100 -> 58 -> 18 visual tokens" in second

        terminal.type("/stats\r")
        stats = terminal.expect("\n> ")
        assert re.search(r"prompt +\d+ tokens evaluated, pictures encoded: 0\r\n", stats)
        assert re.search(r"picture +100 -> 58 -> 18 visual tokens, cat.jpg\r\n", stats)
        assert re.search(r"answer +12 tokens, \S+ tokens/s, cut off at the limit\r\n", stats)

        terminal.type("/ima\t dog.p\t\r")  # completed
        terminal.expect("dog.png, 200 x 300, is part of the next question.", "\n> ")
        terminal.type("\x1b[A\x1b[A\x1b[A\r")  # the question before /stats
        terminal.expect(NEXT, "200 -> ", "visual tokens", "\n> ")
        terminal.type("/tokens maps.png\r")
        terminal.expect("wrote maps-1.png.", "wrote maps-2.png.", "\n> ")
        for path in (place / "maps-1.png", place / "maps-2.png"):
            with Image.open(path) as drawn:
                assert drawn.format == "PNG" and min(drawn.size) > 400

        terminal.type("/reset\r")
        terminal.expect("Forgotten", "> ")
        terminal.type("/tokens maps.png\r")
        terminal.expect("halfv: No picture was asked about yet", "\n> ")
        terminal.type('"""where\ris the dog"""\r')
        assert "visual tokens" not in terminal.expect("first token", "\n> ")
        terminal.type("/imagine\r")
        terminal.expect("halfv: /imagine is not a command: did you mean /image.", "\n> ")
        terminal.type("/image nope.jpg\r")
        terminal.expect("halfv: nope.jpg does not exist: check the name and the folder.", "\n> ")
        terminal.type(f"{place / 'cat.jpg'}\r")  # as a terminal pastes a file that is dropped on it
        terminal.expect("cat.jpg, 420 x 300, is part of the next question.", "\n> ")
        terminal.type("/help\r")
        terminal.expect("/quit", "\n> ")
        terminal.type("\x04")
        assert terminal.code() == 0
    history = (place / "halfv-edge" / "chat_history").read_text()
    assert history.startswith(f"/stats\n{QUESTION}\n{NEXT}\n/stats\n")


def test_ctrl_c_stops_the_answer(place: Path) -> None:
    with talk(place, "cat.jpg", "--grammar", "endless.gbnf", "--seed", "1") as terminal:
        terminal.expect("> ")
        terminal.type(f"{QUESTION}\r")
        terminal.expect(QUESTION, "\n")
        terminal.expect("e", "a")  # it streams
        terminal.interrupt("(stopped)", "tokens/s", "\n> ")
        terminal.type(f"{NEXT}\r")
        terminal.expect(NEXT, "\n", "e")
        terminal.interrupt("(stopped)", "\n> ")
        terminal.type("/quit\r")
        assert terminal.code() == 0


def test_ctrl_c_at_the_prompt(place: Path) -> None:
    """In the instant of a key the terminal can drop that key, and readline then waits for the next one."""
    with talk(place) as terminal:
        terminal.expect("> ")
        for _ in range(5):
            terminal.type("half a line")
            terminal.expect("half a line")
            time.sleep(0.2)
            terminal.type("\x03")
            terminal.expect("(Ctrl-C again leaves, and so does Ctrl-D)", "\n> ", seconds=20)
            time.sleep(TWICE_SEC)
        terminal.leave(TWICE_SEC)
        assert terminal.code() == 130


def test_a_picture_that_does_not_fit(place: Path) -> None:
    """Found out while the person types."""
    with talk(place, "--ctx", "256", "--max-tokens", "4", "--temp", "0") as terminal:
        terminal.expect("> ")
        terminal.type("/image cat.jpg dog.png cat.png\r")
        terminal.expect("cat.png, 420 x 300", "\n> ")
        terminal.type("where is")
        terminal.expect(
            "halfv: cat.png has 100 visual tokens and needs a context of", "load with --ctx 2048", "\n> where is"
        )
        terminal.type(" the cat\r")
        terminal.expect("200 -> 100 -> 20 visual tokens", "\n> ")
        terminal.type("/quit\r")
        assert terminal.code() == 0


def test_leaving_does_not_wait_for_the_encoder(place: Path) -> None:
    picture(2, 1800, 1800).save(place / "large.png")
    with Terminal("chat", "-m", "qwen2vl/m.gguf", "large.png", "--threads", "1", cwd=place) as terminal:
        terminal.expect("> ")
        terminal.type("what is it\r")
        terminal.expect("reading large.png", "% through the encoder: ")
        terminal.interrupt("(stopped before the answer began)", "\n> ", seconds=5)
        terminal.type("/quit\r")
        assert terminal.code(seconds=5) == 0


def test_an_answer_cannot_steer_the_terminal(place: Path) -> None:
    with talk(place, "cat.jpg", "--grammar", "escape.gbnf") as terminal:
        terminal.expect("> ")
        terminal.type(f"{QUESTION}\r")
        terminal.expect("cat\ufffd]0;dog", "\n> ")
        terminal.type("/quit\r")
        assert terminal.code() == 0


def test_questions_from_a_file(place: Path) -> None:
    lines = f"{QUESTION}\n\n/image dog.png\n{NEXT}\n/stat\nnever asked\n"
    done = chat(place, "cat.jpg", "--grammar", "schema.gbnf", stdin=lines)
    assert done.returncode == 2  # no such grammar
    (place / "yes.gbnf").write_text('root ::= "yes"')
    done = chat(place, "cat.jpg", "--grammar", "yes.gbnf", stdin=lines)
    assert (done.returncode, done.stdout) == (2, "yes\nyes\n")
    assert done.stderr.count("first token") == 2
    assert done.stderr.endswith("halfv: /stat is not a command: did you mean /stats.\n")


@pytest.mark.parametrize(
    ("platform", "typed", "files"),
    [
        ("linux", "'a b.png' c.png", ["a b.png", "c.png"]),
        ("linux", r"a\ b.png", ["a b.png"]),
        ("linux", "file:///tmp/a%20b.png", ["/tmp/a b.png"]),
        ("win32", r'"C:\my pictures\a b.png" C:\c.png', [r"C:\my pictures\a b.png", r"C:\c.png"]),
        ("win32", "file:///C:/a%20b.png", ["C:/a b.png"]),
        ("linux", "it's not closed", ["it's", "not", "closed"]),
    ],
)
def test_names_of_dropped_files(platform: str, typed: str, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert session._paths(typed) == files

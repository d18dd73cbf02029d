"""A conversation where prompt_toolkit is installed, on a pseudo-terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfv_edge.cli.session import TWICE_SEC
from tests.support.terminal import Terminal
from tests.support.vlm import NEXT, QUESTION

pytest.importorskip("prompt_toolkit", reason="prompt_toolkit is not installed: pip install 'halfv-edge[chat]'")
ARGS = ("chat", "-m", "llava/m.gguf", "--threads", "1", "--temp", "0", "--max-tokens", "3")
READY = "\x1b[?2004h"  # at every prompt; it draws no spaces, and what it says while one types is text
NO_CPR = {"PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody answers here where the cursor is


def test_a_conversation(place: Path) -> None:
    history = place / "halfv-edge" / "chat_history"
    history.parent.mkdir(exist_ok=True)
    history.write_text("/stats\nan earlier question\n")  # readline's
    with Terminal(*ARGS, "cat.jpg", cwd=place, env=NO_CPR, plain=False) as terminal:
        terminal.expect("/help lists commands", READY)
        terminal.type("\x1b[A")
        terminal.expect("earlier", "question")
        terminal.type("\x15")  # Ctrl-U
        terminal.type(f"{QUESTION}\r")
        terminal.expect("100 -> 50 -> 10 visual tokens", READY)
        terminal.type("/ima\t")
        terminal.expect("/image")
        terminal.type(" dog.p\t")
        terminal.expect("dog.p", "ng")
        terminal.type("\r")
        terminal.expect("dog.png, 200 x 300, is part of the next question.", READY)
        terminal.type(f"\x1b[200~{place / 'cat.jpg'}\x1b[201~\r")  # a paste, or a file that is dropped
        terminal.expect("cat.jpg, 420 x 300, is part of the next question.", READY)
        terminal.type(f"{NEXT}\x1b\rand\x1b[200~ why\nso\x1b[201~\r")  # Alt-Enter, and a paste of two lines
        terminal.expect("visual tokens", READY)
        terminal.type('"""where\ris the dog"""\r')
        terminal.expect("first token", READY)
        terminal.type("/quit\r")
        assert terminal.code() == 0
    kept = history.read_text().splitlines()
    assert kept[:3] == ["/stats", "an earlier question", QUESTION]
    assert kept[-3:] == [f"{NEXT} and why so", '"""where is the dog"""', "/quit"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_what_is_said_while_a_person_types_stands_above(place: Path) -> None:
    with Terminal(*ARGS, "--ctx", "256", cwd=place, env=NO_CPR, plain=False) as terminal:
        terminal.expect(READY)
        # the message comes before the prompt, or while it stands
        terminal.type("/image cat.jpg dog.png cat.png\rwhere is")
        terminal.expect("cat.png, 420 x 300")
        terminal.expect("cat.png has 100 visual tokens and needs a context of", "where")
        terminal.type(" the cat\r")
        terminal.expect("200 -> 100 -> 20 visual tokens", READY)
        terminal.type("\x04")
        assert terminal.code() == 0


def test_ctrl_c_twice_leaves(place: Path) -> None:
    with Terminal(*ARGS, cwd=place, env=NO_CPR, plain=False) as terminal:
        terminal.expect(READY)
        terminal.type("half a line")
        terminal.expect("half", "line")
        terminal.type("\x03")
        terminal.expect("(Ctrl-C again leaves, and so does Ctrl-D)", READY)
        terminal.leave(TWICE_SEC)
        assert terminal.code() == 130

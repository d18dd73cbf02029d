"""`halfv chat` with a picture from stdin, and going on with the last conversation."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from halfv_edge import Model
from tests.support.terminal import Terminal
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import CHATML, NEXT, PROFILE, QUESTION, picture

GREEDY = ("--temp", "0", "--max-tokens", "8")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    model = tmp_path / "models" / "m.gguf"
    make_tiny(model, "llama", seed=3, profile=PROFILE, **{"tokenizer.chat_template": CHATML})
    make_tiny_mmproj(model.with_name("mmproj-m.gguf"), "llava", n_embd=64)
    picture(0).save(tmp_path / "cat.png")
    return tmp_path


def png() -> bytes:
    file = io.BytesIO()
    picture(0).save(file, "png")
    return file.getvalue()


def halfv(place: Path, *args: str, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "halfv_edge", "chat", "--threads", "1", *args]
    env = os.environ | {"XDG_STATE_HOME": str(place / "state")}
    done = subprocess.run(command, cwd=cwd or place, input=stdin, capture_output=True, env=env)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_forget_keeps_nothing(place: Path) -> None:
    assert halfv(place, "-m", "models/m.gguf", "cat.png", "-p", QUESTION, "--forget", *GREEDY).returncode == 0
    assert not (place / "state" / "halfv-edge" / "last-chat.json").exists()


def test_it_goes_on_where_it_was(place: Path) -> None:
    first = halfv(place, "-m", "models/m.gguf", "cat.png", "-p", QUESTION, *GREEDY)
    assert first.returncode == 0, first.stderr
    kept = place / "state" / "halfv-edge" / "last-chat.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    second = halfv(place, "--continue", "-p", NEXT, *GREEDY, cwd=elsewhere)  # from another folder, without -m
    third = halfv(place, "-c", "-p", "and the dog", "--json", *GREEDY, cwd=elsewhere)
    found = json.loads(third.stdout)
    assert [image["name"] for image in found["images"]] == [str(place / "cat.png")]

    with Model.load(place / "models" / "m.gguf", n_threads=1) as model:
        options = {"temperature": 0, "max_tokens": 8}
        messages = [{"role": "user", "content": [image_part(place), {"type": "text", "text": QUESTION}]}]
        for question, answer in ((NEXT, first.stdout[:-1]), ("and the dog", second.stdout[:-1])):
            assert model.answer(messages, **options) == answer
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        assert model.answer(messages, **options) == found["answer"]
    assert json.loads(kept.read_text())["messages"] == [*messages, {"role": "assistant", "content": found["answer"]}]


def image_part(place: Path) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": str(place / "cat.png")}}


def test_what_a_terminal_said_goes_on(place: Path) -> None:
    with Terminal("chat", "-m", "models/m.gguf", "--threads", "1", "--max-tokens", "8", cwd=place) as terminal:
        terminal.expect("> ")
        terminal.type(f"{QUESTION}\n")
        terminal.expect("first token", "> ")  # what is typed before the prompt can get lost
        terminal.type("\x04")
        assert terminal.code() == 0
    kept = place / "halfv-edge" / "last-chat.json"
    assert [message["role"] for message in json.loads(kept.read_text())["messages"]] == ["user", "assistant"]


def test_a_picture_from_stdin(place: Path) -> None:
    named = halfv(place, "-m", "models/m.gguf", "cat.png", "-p", QUESTION, *GREEDY)
    piped = halfv(place, "-m", "models/m.gguf", "-", "-p", QUESTION, *GREEDY, stdin=png())
    assert piped.returncode == 0 and piped.stdout == named.stdout
    later = halfv(place, "-c", "-p", NEXT, "--json", *GREEDY)
    assert json.loads(later.stdout)["images"][0]["n_visual"] == 100


@pytest.mark.parametrize(
    ("args", "stdin", "said"),
    [
        (("-c", "-p", "x"), b"", "--continue has nothing to go on with: have a conversation with `halfv chat` first."),
        (("-", "-p", "x"), b"", "The picture on stdin is empty: it has 0 bytes."),
        (
            ("-", "-p", "x"),
            b"text",
            "The picture on stdin is not an image that can be read: give PNG, JPEG, WebP, GIF,",
        ),
        (("-", "-", "-p", "x"), b"", "stdin (-) was given twice: it has one picture."),
        (("-", "-p", "-"), b"", "A picture from stdin (-) leaves no room for questions there: give one with -p."),
        (("-",), b"", "A picture from stdin (-) leaves no room for questions there: give one with -p."),
    ],
)
def test_mistakes(args: tuple[str, ...], stdin: bytes, said: str, place: Path) -> None:
    done = halfv(place, "-m", "models/m.gguf", *args, stdin=stdin)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(f"halfv: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "kept", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "messages": [], "model": 1}', "[" * 9000]
)
def test_a_file_that_is_no_conversation(kept: str, place: Path) -> None:
    folder = place / "state" / "halfv-edge"
    folder.mkdir(parents=True)
    (folder / "last-chat.json").write_text(kept)
    done = halfv(place, "-c", "-p", "x")
    assert done.returncode == 2 and done.stderr.startswith(f"halfv: {folder / 'last-chat.json'} is not a conversation")


def test_an_answer_is_an_answer_where_nothing_can_be_kept(place: Path) -> None:
    (place / "state").write_text("not a folder")
    done = halfv(place, "-m", "models/m.gguf", "-p", QUESTION, *GREEDY)
    assert done.returncode == 0 and done.stdout.strip() and "--continue will not know of this" in done.stderr

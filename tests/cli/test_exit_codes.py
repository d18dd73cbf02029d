"""The same mistake has the same exit code in every command, and every mistake is one line."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from halfv_edge.cli import errors as cli_errors
from halfv_edge.cli import main as cli_main
from halfv_edge.cli.main import main
from halfv_edge.errors import HalfVError, RunError

# a command line around a GGUF, and around a value that its flag cannot have
WITH_MODEL = {
    "chat": "chat -m {} -p why",
    "tokens": "tokens {picture} -m {} -p why -o map.png",
    "profile show": "profile show {}",
    "profile add": "profile add {} --in-place",
    "profile strip": "profile strip {} --in-place",
    "quantize-mmproj": "quantize-mmproj {} out.gguf",
    "bench": "bench -m {}",
    "eval": "eval {questions} -m {}",
    "calibrate": "calibrate -m {} -o p.json",
}
WITH_VALUE = {
    "chat": "chat -p why --keep nothing",
    "tokens": "tokens {picture} -p why -o map.jpg",
    "profile add": "profile add {model} --in-place --ivr-keep half",
    "convert": "convert {folder} --type q99",
    "quantize-mmproj": "quantize-mmproj {model} out.gguf --type q99",
    "bench": "bench --repeats 0",
    "eval": "eval {questions} --limit none",
    "calibrate": "calibrate --samples 1 -o p.json",
}
WRONG_COMMANDS = ("shaw", "profile", "profile shwo", "chat --bogus", "profile show", "convert", "eval")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("picture.png")
    Path("questions.jsonl").write_text('{"image": "picture.png", "question": "why", "answers": ["so"]}\n')
    Path("bad.gguf").write_bytes(b"GGUF" + bytes(3))
    Path("folder").mkdir()
    return tmp_path


def run(line: str, model: str, capsys: pytest.CaptureFixture[str]) -> int:
    files = {"picture": "picture.png", "questions": "questions.jsonl", "folder": "folder", "model": "bad.gguf"}
    try:
        code = main(line.format(model, **files).split())
    except SystemExit as stop:  # from argparse
        code = int(stop.code or 0)
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.splitlines()[-1]  # some say what they are about to do
    assert last.startswith("halfv: ") and last.endswith("."), said.err
    return code


@pytest.mark.parametrize("command", WITH_MODEL)
def test_a_file_that_is_not_there(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(WITH_MODEL[command], "nope.gguf", capsys) == 2


@pytest.mark.parametrize("command", WITH_MODEL)
def test_a_gguf_that_cannot_be_read(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(WITH_MODEL[command], "bad.gguf", capsys) == 2


@pytest.mark.parametrize("command", WITH_VALUE)
def test_a_bad_value(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(WITH_VALUE[command], "nope.gguf", capsys) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("caht", "COMMAND 'caht' is not known: did you mean chat? `halfv --help`"),
        ("nothing", "COMMAND 'nothing' is not known: choose from info, "),
        (
            "bench --shape qwen2.5-vl-3B",
            "--shape 'qwen2.5-vl-3B' is not known: did you mean qwen2.5-vl-3b? `halfv bench",
        ),
    ],
)
def test_the_word_that_was_meant(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"halfv: {said}")


@pytest.mark.parametrize("line", WRONG_COMMANDS)
def test_a_wrong_command(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line, "", capsys) == 2


@pytest.mark.parametrize(("error", "code"), [(HalfVError("a."), 2), (RunError("b."), 1), (KeyboardInterrupt(), 130)])
@pytest.mark.parametrize("command", ["info", "profile show", "quantize-mmproj", "tokens"])
def test_kinds_decide(
    command: str,
    error: BaseException,
    code: int,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    from halfv_edge.cli import info
    from halfv_edge.engine import images
    from halfv_edge.profile import model_file

    monkeypatch.setattr(info, "collect", fail)
    monkeypatch.setattr(model_file.ModelFile, "read", fail)
    monkeypatch.setattr("halfv_edge.gguf.read._Scanner.scan", fail)
    monkeypatch.setattr(images, "load", fail)
    assert run(WITH_MODEL.get(command, command), "bad.gguf", capsys) == code


def test_parameters_are_named_as_the_reader_types_them() -> None:
    error = HalfVError(parameter="temperature", value=-1.0, rule="at least 0")
    assert str(error) == "temperature = -1.0 is not valid: it must be at least 0."
    assert cli_errors.in_words(error) == "halfv: --temp -1 is not valid: it must be at least 0."
    error = HalfVError(
        "Out of memory", hint="lower {n_ctx}, or use {kv_type}", settings={"n_ctx": None, "kv_type": "q8_0"}
    )
    assert str(error) == "Out of memory: lower n_ctx, or use kv_type='q8_0'."
    assert cli_errors.in_words(error) == "halfv: Out of memory: lower --ctx, or use --kv-type q8_0."
    plain = HalfVError("A file called n_ctx = 3 is not valid.")  # words of others are left alone
    assert cli_errors.in_words(plain) == "halfv: A file called n_ctx = 3 is not valid."


def test_every_flag_is_a_flag() -> None:
    flags = {
        flag
        for command in _commands(cli_main._parser())
        for action in command._actions
        for flag in action.option_strings
    }
    assert set(cli_errors.FLAGS.values()) <= flags


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(found for choices in inner for each in choices.values() for found in _commands(each))]


@pytest.mark.parametrize("line", ["chat --bogus", "profile show model.gguf --bogus", "serve --profile"])
def test_the_hint_names_the_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(line.split())
    assert f"; `halfv {line.split()[0]} --help` lists the flags." in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors as a shell does")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(place: Path, closed: str) -> None:
    """What is said there is lost, and nothing else happens."""
    line = f"{shlex.quote(sys.executable)} -m halfv_edge chat nothing.png -p why {closed}"
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    said = "" if "2>" in closed else "halfv: nothing.png does not exist: check the name and the folder.\n"
    assert (found.returncode, found.stdout, found.stderr) == (2, "", said)


INTERRUPTED_IN_A_CALLBACK = """
import ctypes, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs behind ignores it
from halfv_edge.cli import info
from halfv_edge.cli.main import main

def interrupted():
    raise KeyboardInterrupt

def collect():
    ctypes.CFUNCTYPE(None)(interrupted)()
    for _ in range(600):
        time.sleep(0.05)

info.collect = collect
sys.exit(main(["info"]))
"""


def test_an_interrupt_while_native_code_calls_back() -> None:
    """It cannot pass through native code, and must not be lost there."""
    command = [sys.executable, "-c", INTERRUPTED_IN_A_CALLBACK]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "halfv: interrupted.\n")

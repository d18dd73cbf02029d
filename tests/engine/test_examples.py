"""Builds and runs examples/ and the Python of docs/llama-cpp-python.md, on tiny models."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from halfv_cpp import library, machine
from PIL import Image, ImageDraw, ImageGrab

from halfv_edge.engine.model import Model
from tests.support import ROOT
from tests.support.vlm import CHATML, NEXT, QUESTION, Vlms, picture

TEMPLATE = {"tokenizer.chat_template": CHATML}


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A picture, in a folder of its own."""
    (tmp_path / "pictures").mkdir()
    picture().save(tmp_path / "pictures" / "cat.png")
    return tmp_path / "pictures" / "cat.png"


def model_and_mmproj(vlms: Vlms, kind: str, **meta: Any) -> tuple[Path, Path]:
    model = vlms.path(kind, **(TEMPLATE | meta))
    return model, model.with_name("mmproj-model.gguf")


def run(*command: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(list(map(str, command)), capture_output=True)


#
# examples/embed.c
#


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory, cmake_cache: dict[str, str]) -> Path:
    """The program, built as docs/embedding.md says, without a warning."""
    folder, cmake = tmp_path_factory.mktemp("examples"), cmake_cache["CMAKE_COMMAND"]
    options = [f"-DHALFV_ROOT={library.lib_dir().parent}", "-DCMAKE_C_FLAGS=-Werror", "-DCMAKE_BUILD_TYPE=Debug"]
    compiler = f"-DCMAKE_C_COMPILER={cmake_cache['CMAKE_C_COMPILER']}"
    for command in ((cmake, "-S", ROOT / "examples", "-B", folder, *options, compiler), (cmake, "--build", folder)):
        done = run(*command)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return next(path for path in (folder / "embed", folder / "Debug" / "embed.exe") if path.exists())


@pytest.mark.parametrize(("kind", "n_visual"), [("llava", 100), ("qwen2vl", 165)])
def test_embed(kind: str, n_visual: int, embed: Path, vlms: Vlms, cat: Path) -> None:
    model, mmproj = model_and_mmproj(vlms, kind)
    done = run(embed, model, mmproj, cat, QUESTION, NEXT)
    assert done.returncode == 0, done.stderr.decode()
    # as many threads as the program has: they share the work of attention, and so order its sums
    with Model.load(model, n_threads=4, n_ctx=4096) as same, same.chat(mode="exact") as chat:
        answers = [chat.answer(QUESTION, [cat], temperature=0, max_tokens=128)]
        kept = [(chat.stats.n_kept, chat.stats.n_deep)]
        was_cut = chat.stats.stopped == "length"
        answers.append(chat.answer(NEXT, temperature=0, max_tokens=128))
        kept.append((chat.stats.n_kept, chat.stats.n_deep))
    text = done.stdout.decode("utf-8", "replace")
    assert text.startswith(f"{answers[0]}\n")
    if kind == "qwen2vl":  # of an answer that was cut the program has evaluated one token more
        assert not was_cut
        assert text == f"{answers[0]}\n{answers[1]}\n"
    said = done.stderr.decode().splitlines()
    assert [line.partition(";")[0] for line in said] == [
        f"embed: visual tokens {n_visual} -> {n_kept} -> {n_deep}" for n_kept, n_deep in kept
    ]
    assert kept[0] < kept[1]


def test_embed_a_model_without_a_profile(embed: Path, vlms: Vlms, cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFV", "off")
    done = run(embed, *model_and_mmproj(vlms, "llava"), cat, QUESTION)
    assert done.returncode == 0
    assert done.stderr.startswith(b"embed: the model runs whole: ")


def test_embed_mistakes(embed: Path, vlms: Vlms, cat: Path, tmp_path: Path) -> None:
    model, mmproj = model_and_mmproj(vlms, "llava")
    wrong_profile, _ = model_and_mmproj(vlms, "llava", **{"halfv.ivr.keep": 7.0})
    wide, _ = model_and_mmproj(vlms, "llava", n_embd=128)
    (tmp_path / "text.png").write_text("not a picture")
    cases = [
        ((), "usage: embed MODEL.gguf"),
        ((model, mmproj, cat), "usage: embed MODEL.gguf"),
        ((model, mmproj, cat, *["why"] * 17), "at most 16 questions"),
        ((tmp_path / "no.gguf", mmproj, cat, "why"), "no.gguf cannot be opened"),
        ((model, mmproj, tmp_path / "no.png", "why"), "no.png cannot be opened"),
        ((mmproj, mmproj, cat, "why"), "cannot be loaded as a language model"),
        ((wrong_profile, mmproj, cat, "why"), "halfv.ivr.keep = 7 is not valid"),
        ((model, model, cat, "why"), "is not the vision encoder of"),
        ((wide, mmproj, cat, "why"), "is not the vision encoder of"),
        ((model, mmproj, tmp_path / "text.png", "why"), "text.png is not a picture that can be read"),
        ((model, mmproj, cat, "why " * 5000), "do not fit into the context of 4096"),
        ((model, mmproj, cat, "why " * 20000), "the question is too long"),
    ]
    for arguments, said in cases:
        done = run(embed, *arguments)
        assert (done.returncode, done.stdout) == (2, b""), (arguments, done.stderr)
        last = done.stderr.decode().splitlines()[-1]
        assert last.startswith("embed: ")
        assert said in last


#
# examples/*.py
#


def python(*command: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """On one core: the threads of a tiny model only wait for each other."""
    cores = sorted(os.sched_getaffinity(0))[:1] if hasattr(os, "sched_setaffinity") else []
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        **options,
    )


def test_ask(vlms: Vlms, cat: Path) -> None:
    model, _ = model_and_mmproj(vlms, "qwen2vl")
    done = python(ROOT / "examples" / "ask.py", model, cat, QUESTION)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.startswith(b"visual tokens 165 -> 82, first token after ")
    done = python(ROOT / "examples" / "ask.py", model, "no.png", QUESTION)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == ["no.png does not exist: check the name and the folder."]


def test_handler(vlms: Vlms, cat: Path) -> None:
    done = python(ROOT / "examples" / "handler.py", *model_and_mmproj(vlms, "qwen2vl"), cat, QUESTION, NEXT)
    assert done.returncode == 0, done.stderr.decode()
    first, second = done.stderr.decode().splitlines()
    assert first.startswith("encoded 1, evaluated ")
    assert second.startswith("encoded 0, evaluated ")


DOCS = (ROOT / "docs" / "llama-cpp-python.md").read_text().split("```python\n")[1:]


@pytest.mark.parametrize("example", [text.split("```")[0] for text in DOCS], ids=lambda text: text.split("\n")[0][2:])
def test_llama_cpp_python_docs(example: str, tmp_path: Path, vlms: Vlms, cat: Path) -> None:
    for name, file in zip(("model.gguf", "mmproj.gguf"), model_and_mmproj(vlms, "qwen2vl"), strict=True):
        (tmp_path / name).symlink_to(file)
    shutil.copy(cat, tmp_path / "cat.png")
    (tmp_path / "example.py").write_text(example)
    done = python("example.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()


#
# examples/window.py
#


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """The name of a virtual screen."""
    pytest.importorskip("tkinter", reason="Python has no tkinter (Debian: python3-tk)")
    if sys.platform != "linux" or not shutil.which("Xvfb"):
        pytest.skip("there is no Xvfb (Debian: xvfb)")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1200x800x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        yield f":{server.stdout.readline().strip()}"
        server.terminate()


@pytest.fixture(scope="module")
def module(screen: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("window", ROOT / "examples" / "window.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def open_window(
    module: ModuleType, screen: str, vlms: Vlms, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(machine, "n_cores", lambda: 1)
    monkeypatch.setattr(Model, "load", functools.partial(Model.load, seed=1))  # else some answers end at once
    windows = []

    def start(*arguments: object, model: Path | None = None) -> Any:
        path = model or model_and_mmproj(vlms, "qwen2vl")[0]
        windows.append(module.start(["-m", str(path), *map(str, arguments)], screenName=screen))
        return windows[-1]

    yield start
    for window in windows:
        window.close()


def wait(window: Any, until: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, window.status["text"]
        window.root.update()
        time.sleep(0.01)
    window.root.update()


def screenshot(window: Any, screen: str) -> np.ndarray:
    time.sleep(0.1)
    window.root.update()
    return np.asarray(ImageGrab.grab(xdisplay=screen).convert("RGB"))


def transcript(window: Any) -> str:
    return window.transcript.get("1.0", "end").strip()


def test_window(open_window: Callable[..., Any], screen: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (560, 420), (40, 90, 200))
    ImageDraw.Draw(image).ellipse((180, 110, 380, 310), (240, 120, 20))
    image.save(tmp_path / "ball.png")
    window = open_window(tmp_path / "ball.png")
    wait(window, lambda: window.status["text"] == "Ask about it")

    window.entry.insert(0, QUESTION)
    window.entry.focus_force()
    window.entry.event_generate("<Return>")
    wait(window, lambda: "first token after" in window.status["text"])
    assert "visual tokens 300 \N{RIGHTWARDS ARROW} 150" in window.status["text"]
    assert transcript(window).startswith(QUESTION)
    assert len(transcript(window)) > len(QUESTION)
    assert window.entry.get() == ""

    shot = screenshot(window, screen)
    left, right = shot[:560, :500], shot[:560, 500:1000]
    assert (left == (40, 90, 200)).all(-1).mean() > 0.3  # the picture
    assert (left == (240, 120, 20)).all(-1).mean() > 0.03
    assert (right == 255).all(-1).mean() > 0.5  # paper,
    assert (right.max(-1) < 100).mean() > 0.001  # and ink on it

    window.shows_map.set(True)
    window._draw()
    mapped = screenshot(window, screen)[:560, :500]
    assert 0.05 < (mapped == (40, 90, 200)).all(-1).mean() < 0.8 * (left == (40, 90, 200)).all(-1).mean()


def test_window_stop(open_window: Callable[..., Any], cat: Path) -> None:
    window = open_window(cat)
    wait(window, lambda: window.status["text"] == "Ask about it")
    window.entry.insert(0, QUESTION)
    window.button.invoke()
    assert window.button["text"] == "Stop"
    window.open(cat)
    assert window.status["text"] == "Wait for the answer, or stop it."
    wait(window, lambda: len(transcript(window)) > len(QUESTION))
    window.button.invoke()
    wait(window, lambda: not window.is_busy)
    assert window.button["text"] == "Ask"


def test_window_takes_pictures(open_window: Callable[..., Any], cat: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "a cat.png"
    shutil.copy(cat, spaced)
    window = open_window()
    wait(window, lambda: window.status["text"] == "Ready")
    window.drop(f"{{{spaced}}} {cat}")
    wait(window, lambda: window.status["text"] == "Ask about it")
    window.root.clipboard_clear()
    window.root.clipboard_append(str(cat))
    window.entry.event_generate("<<Paste>>")
    assert window.is_busy
    wait(window, lambda: not window.is_busy)
    window.root.clipboard_clear()
    window.root.clipboard_append("what is it")
    window.entry.event_generate("<<Paste>>")
    assert (window.entry.get(), window.is_busy) == ("what is it", False)
    window.entry.event_generate("<Return>")
    wait(window, lambda: "visual tokens 495" in window.status["text"])


def test_window_mistakes(open_window: Callable[..., Any], tmp_path: Path) -> None:
    window = open_window()
    wait(window, lambda: not window.is_busy)
    window.open(tmp_path / "no.png")
    wait(window, lambda: not window.is_busy)
    assert "no.png does not exist" in window.status["text"]
    broken = open_window(model=tmp_path / "no.gguf")
    wait(broken, lambda: "no.gguf" in broken.status["text"])

"""The trainer for a GPU, as far as a CPU can tell: its forward pass, its batches, where it starts, what it leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from training import export, join, pictures, shipped
from training.fast import Fast
from training.packing import HEAD_NAMES, N_TEXT, NO_LABEL, packed
from training.pointing import Grid
from training.renderers.store import Reader, Writer
from training.scenes import Scene, Scenes, placed, repeated
from training.student import TOKEN, Student, StudentShape
from training.teacher import N_PREFIX, normalised
from training.train_gpu import OnDevice, Training
from training.unanswerable import ANSWER, named
from training.vocabulary import Vocabulary

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.read()


def small(vocabulary: Vocabulary, n_vision_layer: int = 3) -> Student:
    """Two heads each; nothing in it adds nothing."""
    torch.manual_seed(1)
    model = Student(StudentShape(len(vocabulary), 128, 96, n_vision_layer, 128, 96, 9))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("grid", [(16, 16), (13, 9), (4, 5)])
def test_the_encoder_is_the_students(vocabulary, grid):
    model = small(vocabulary)
    pixels = torch.randn(2, grid[0] * TOKEN, grid[1] * TOKEN, 3)
    with torch.no_grad():
        torch.testing.assert_close(Fast(model).see(pixels, None), model.vision(pixels), rtol=1e-4, atol=1e-4)


def scene(holes: bool) -> Scene:
    samples = [pictures.make(seed, "train") for seed in (3, 4)]
    return Scene(samples, Grid(16, 16, TOKEN), holes, "drawn")


def test_the_language_model_is_the_students(vocabulary):
    model = small(vocabulary)
    batch = OnDevice.of(packed(scene(False), vocabulary, random.Random(0)), CPU)
    visual = torch.randn(2, 256, 128)
    same = (batch.group[:, :, None] == batch.group[:, None, :]) & torch.ones(N_TEXT, N_TEXT, dtype=torch.bool).tril()
    mask = torch.cat([torch.ones(2, N_TEXT, N_PREFIX, dtype=torch.bool), same], dim=2)
    around = torch.tensor(vocabulary.around)
    with torch.no_grad():
        wanted, looks = model.language(around, visual, batch.text, batch.positions + N_PREFIX, mask, (16, 16))
        found, looked = Fast(model).speak(visual, batch, (16, 16), around, {3: "", 8: ""})
    said = batch.group >= 0
    torch.testing.assert_close(found[said], wanted[said], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(looked[3][said], looks[3][said], rtol=1e-4, atol=1e-5)


def test_what_is_missing_is_seen_by_nobody(vocabulary):
    model = small(vocabulary)
    fast, around = Fast(model), torch.tensor(vocabulary.around)
    batch = OnDevice.of(packed(scene(True), vocabulary, random.Random(0)), CPU)
    assert not batch.alive.all() and batch.alive.any(1).all()
    answers = []
    for value in (0, 200):
        tokens = batch.pixels.view(2, 16, TOKEN, 16, TOKEN, 3).transpose(2, 3).reshape(2, 256, -1).clone()
        tokens[~batch.alive] = value
        pixels = tokens.view(2, 16, 16, TOKEN, TOKEN, 3).transpose(2, 3).reshape(batch.pixels.shape)
        with torch.no_grad():
            features = fast.see(normalised(pixels), batch.alive)
            answers.append(fast.speak(model.projector(features), batch, (16, 16), around, {})[0][batch.group >= 0])
    torch.testing.assert_close(answers[0], answers[1])


def by_the_rule(pixels: np.ndarray) -> np.ndarray:
    """docs/pixel-pruning.md, word by word, for tau 0."""
    rows, columns = pixels.shape[0] // TOKEN, pixels.shape[1] // TOKEN
    token = lambda y, x: pixels[y * TOKEN : (y + 1) * TOKEN, x * TOKEN : (x + 1) * TOKEN].tobytes()  # noqa: E731
    found = np.zeros((rows, columns), bool)
    for y in range(rows):
        for x in range(columns):
            if x and y:
                a, b, c = token(y, x - 1), token(y - 1, x), token(y - 1, x - 1)
                found[y, x] = token(y, x) == (b if c == a and b != a else a)
            elif x or y:
                found[y, x] = token(y, x) == (token(y, x - 1) if x else token(y - 1, x))
    return found


def test_holes_are_those_of_pixel_pruning():
    shares = []
    for seed in range(12):
        pixels = np.asarray(pictures.make(seed, "train").image)
        np.testing.assert_array_equal(repeated(pixels), by_the_rule(pixels))
        shares.append(repeated(pixels).mean())
    blocks = np.random.default_rng(0).integers(0, 2, (8, 9), np.uint8).repeat(TOKEN, 0).repeat(TOKEN, 1)
    pixels = np.repeat(blocks[..., None], 3, -1)
    np.testing.assert_array_equal(repeated(pixels), by_the_rule(pixels))
    assert max(shares) > 0.5


def test_a_placed_picture_keeps_what_it_shows():
    sample = pictures.make(5, "train", "words")
    larger = placed(random.Random(0), sample, (480, 480), (640, 500), (100, 10))
    assert larger.image.size == (640, 500) and len(larger.chars) == len(sample.chars)
    for (char, *old), (same, *new) in zip(sample.chars, larger.chars, strict=True):
        assert char == same
        middle = [(a + b) * 0.75 for a, b in ((old[0], old[2]), (old[1], old[3]))]
        assert abs((new[0] + new[2]) / 2 - middle[0] - 100) < 1.5 and abs((new[1] + new[3]) / 2 - middle[1] - 10) < 1.5


def test_batches_of_all_kinds(vocabulary):
    for kind in ("drawn", "shrunk", "grown"):
        scenes = Scenes(1, [], None, tokens=1200, mixture={kind: 1.0})
        batch = packed(scenes.next(), vocabulary, random.Random(0))
        n, places = len(batch.pixels), batch.rows * batch.columns
        assert batch.pixels.shape == (n, batch.rows * TOKEN, batch.columns * TOKEN, 3)
        assert places % 8 == 0 and batch.labels.shape == (n, places, len(HEAD_NAMES))
        assert (batch.labels[~batch.alive] == NO_LABEL).all() and (batch.labels[batch.alive] != NO_LABEL).all()
        assert batch.about.max(initial=0) < n * N_TEXT * places
        assert (batch.question[batch.targets >= 0] >= 0).all()


def test_questions_without_an_answer(vocabulary):
    scenes, found = Scenes(1, [], None, tokens=16384, mixture={"drawn": 1.0}), []
    for _ in range(3):
        for sample in scenes.next().samples:
            shown = "".join(char for char, *_ in sample.chars).lower()
            for question in sample.questions:
                if question.task == "unknown":
                    found.append(question)
                    assert question.answer == ANSWER
                    if question.group != "unknown/world":
                        assert not any(word in shown for word in named(question.text))
    assert len(found) > 20 and len({question.group for question in found}) > 5


def test_going_on_from_what_is_shipped(vocabulary, tmp_path):
    model = small(vocabulary)
    export.export(model, vocabulary, tmp_path, "f32")
    again, _ = shipped.load(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    pixels = torch.randn(1, 100, 80, 3)
    with torch.no_grad():
        torch.testing.assert_close(shipped.deeper(again, 6).vision(pixels), model.vision(pixels))


def test_weights_in_parts_are_a_checkpoint(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr("training.train_gpu.PART_BYTES", 100_000)
    training = Training(small(vocabulary), vocabulary, CPU, 1.0)
    batch = OnDevice.of(packed(scene(True), vocabulary, random.Random(0)), CPU)
    figures = [training.step(batch, 1.0)["loss"].item() for _ in range(3)]
    assert figures[2] < figures[0]
    training.save(tmp_path)
    assert len(list(tmp_path.glob("weights-*.part"))) > 1
    monkeypatch.setattr(sys, "argv", ["join", str(tmp_path), str(tmp_path / "checkpoint.pt")])
    join.main()
    model, _ = export.load(tmp_path / "checkpoint.pt")
    masters = training.optimizer.state
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, masters["model." + name]["master"].half().float()), name


def test_pictures_are_kept_with_all_that_is_known(tmp_path):
    samples = [pictures.make(seed, "train") for seed in range(3)]
    writer = Writer(tmp_path, "web", 80)
    for sample in samples:
        writer.add(sample)
    writer.close()
    for kept, sample in zip(Reader(tmp_path, "web"), samples, strict=True):
        assert kept.questions == sample.questions and kept.chars == sample.chars and kept.shapes == sample.shapes
        assert kept.image.size == sample.image.size


KILLED = """
import sys, time
from training.batches import Drawer
from training.packing import Drawers
from training.scenes import Scenes
from training.vocabulary import Vocabulary
if __name__ == "__main__":
    words = Vocabulary.read().words
    if sys.argv[1] == "spawned":
        drawer = Drawer(1, 0, words, None, 0, 256)
        next(drawer)
        number = drawer._process.pid
    else:
        drawers = Drawers(1, lambda number: Scenes(number, [], None, tokens=256, mixture={"drawn": 1.0}), words)
        drawers.take(60)
        number = drawers._processes[0].pid
    print(number, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["spawned", "forked"])
def test_who_draws_ends_with_a_killed_trainer(tmp_path, kind):
    script = tmp_path / "trainer.py"
    script.write_text(KILLED)
    root = str(Path(__file__).parents[2])
    trainer = subprocess.Popen(
        [sys.executable, str(script), kind], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    child = int(trainer.stdout.readline())
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
        time.sleep(0.2)
    is_left = Path(f"/proc/{child}").exists()
    if is_left:
        os.kill(child, signal.SIGKILL)
    assert not is_left

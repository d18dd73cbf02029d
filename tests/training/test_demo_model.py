"""The demo model's two halves, torch and GGUF, are the same model; its vocabulary is llama.cpp's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from halfv_edge.engine.model import Model
from tests.support.mtmd_prompt import MARKER, run_prompt
from training import export
from training.batches import CHAR_CLASS, COLOUR_CLASS, HEADS, KIND_CLASS, NOTHING, collate, lay_out, patch_labels
from training.pictures import Question, Sample, make
from training.pointing import Places, targets
from training.student import TOKEN, Student, StudentShape
from training.teacher import GRID, N_PREFIX, Teacher, TeacherShape, normalised, sized
from training.vocabulary import ASSISTANT, END, USER, Vocabulary, words_of_questions

TEXTS = (
    "What is the total?",
    'Is the word "Kettle" in the picture?',
    "how much is croissant",
    "Which entry has the value 1,204.50 (or 3%)?\nTell me.",
    "It's  two  spaces, you'd say; naïve café 你好 — ½ of 12345\r\n\n ok_then",
    " leading, 'quoted' and trailing ",
    "#!$ ... ;-) a1b2",
)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.read()


@pytest.fixture(scope="module")
def random_model(vocabulary: Vocabulary) -> Teacher:
    """Small, and far from the start of a training, where many matrices are zero."""
    torch.manual_seed(1)
    model = Teacher(TeacherShape(len(vocabulary), n_vision_layer=2, n_layer=3))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def files(random_model: Teacher, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    export.export(random_model, vocabulary, folder, "f32")
    return folder


def torch_logits(model: Teacher, vocabulary: Vocabulary, pixels: np.ndarray, question: str) -> tuple:
    """The projector's output, and the logits after the whole prompt."""
    text = torch.tensor([[*vocabulary.encode(question), vocabulary.end, vocabulary.assistant]])
    n = text.shape[1]
    positions = torch.arange(n)[None] + N_PREFIX
    mask = torch.ones(1, n, N_PREFIX + n, dtype=torch.bool).tril(N_PREFIX)
    with torch.no_grad():
        visual = model.projector(model.vision(normalised(torch.from_numpy(pixels)[None])))
        around = torch.tensor(vocabulary.around)
        states, _ = model.language(around, visual, text, positions, mask)
        return visual[0].numpy(), model.language.head(states[0, -1]).numpy()


def test_same_logits(files: Path, random_model: Teacher, vocabulary: Vocabulary) -> None:
    """From pixels: the patches, position and class embeddings, which layer's output, activations, rotation, order."""
    image = make(3, "validation").image
    question = "What is the total?"
    seen = run_prompt(
        files / "model.gguf", files / "mmproj.gguf", np.array(image), f"{USER}{MARKER}{question}{END}{ASSISTANT}"
    )
    visual, logits = torch_logits(random_model, vocabulary, sized(image), question)
    assert seen.n_pos == N_PREFIX + len(vocabulary.encode(question)) + 2
    scale = visual.std()
    assert np.abs(seen.pictures[0] - visual).max() < 0.03 * scale  # ggml's gelu is a table of half floats
    assert np.abs(seen.logits - logits).max() < 0.03 * logits.std()
    assert np.abs(logits - torch_logits(random_model, vocabulary, 255 - sized(image), question)[1]).max() > logits.std()


@pytest.mark.parametrize("side", [12, 16])
def test_same_logits_of_any_size(vocabulary: Vocabulary, tmp_path: Path, side: int) -> None:
    """Of the model for pictures of any size: windows that edges cut, and positions in rows and columns."""
    torch.manual_seed(2)
    model = Student(StudentShape(len(vocabulary), n_vision_layer=4, n_layer=3))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    export.export(model.eval(), vocabulary, tmp_path, "f32")
    pixels, question = sized(make(3, "validation").image, side * TOKEN), "What is the total?"
    prompt = f"{USER}{MARKER}{question}{END}{ASSISTANT}"
    seen = run_prompt(tmp_path / "model.gguf", tmp_path / "mmproj.gguf", pixels, prompt)
    text = torch.tensor([[*vocabulary.encode(question), vocabulary.end, vocabulary.assistant]])
    n, n_prefix = text.shape[1], N_PREFIX - GRID * GRID + side * side
    mask = torch.ones(1, n, n_prefix + n, dtype=torch.bool).tril(n_prefix)
    with torch.no_grad():
        visual = model.projector(model.vision(normalised(torch.from_numpy(pixels)[None])))
        around, positions = torch.tensor(vocabulary.around), torch.arange(n)[None] + N_PREFIX
        states, _ = model.language(around, visual, text, positions, mask, (side, side))
        logits = model.language.head(states[0, -1]).numpy()
    assert np.abs(seen.pictures[0] - visual[0].numpy()).max() < 0.03 * visual.std()
    assert np.abs(seen.logits - logits).max() < 0.03 * logits.std()


def test_same_tokens(files: Path, vocabulary: Vocabulary) -> None:
    with Model.load(files / "model.gguf", files / "mmproj.gguf") as model:
        for text in TEXTS:
            assert model.tokenize(text) == vocabulary.encode(text), text
            assert vocabulary.decode(vocabulary.encode(text)) == text


def test_words(vocabulary: Vocabulary) -> None:
    """Template words are one token; what is read off pictures is spelled."""
    assert len(vocabulary.encode("What is the total?")) == 5
    assert len(vocabulary.encode("yes")) == len(vocabulary.encode("diamond")) == 1
    assert len(vocabulary.encode(" Zimtstern")) == 10
    assert set(words_of_questions()) <= set(vocabulary.words)


def test_conversation(files: Path, vocabulary: Vocabulary) -> None:
    """The chat template says what training saw, over several turns."""
    with Model.load(files / "model.gguf", files / "mmproj.gguf") as model:
        told = model.runtime.template.render(
            [
                {"role": "user", "content": "What is the date?"},
                {"role": "assistant", "content": "12:30"},
                {"role": "user", "content": "count the stars"},
            ]
        )
    asked = [Question("document", "What is the date?", "12:30", ""), Question("count", "count the stars", "3", "")]
    rows, _ = lay_out(vocabulary, Sample(make(1, "train").image, asked, [], [], "", ""), chained=True)
    trained = [vocabulary.user, *(row.token for row in rows)]
    prompt = trained[: len(trained) - len(vocabulary.encode("3")) - 1]
    for special, text in ((USER, "<|user|>"), (ASSISTANT, "<|assistant|>"), (END, "<|end|>")):
        assert special == text
    pieces = [piece for part in told.split("<|") if part for piece in [part.split("|>")]]
    spoken = [token for name, text in pieces for token in (getattr(vocabulary, name), *vocabulary.encode(text))]
    assert spoken == prompt


def test_answers_see_only_their_own_question(vocabulary: Vocabulary) -> None:
    sample = make(5, "train")
    batch = collate([sample], vocabulary, type("Never", (), {"random": staticmethod(lambda: 1.0)})())
    starts = np.flatnonzero(batch.positions[0] == N_PREFIX)
    assert len(starts) > 2
    text_mask = batch.mask[0, :, N_PREFIX:]
    second = starts[1]
    assert not text_mask[second:, :second][: starts[2] - second].any()
    assert batch.mask[0, :, :N_PREFIX].all()
    answers = [vocabulary.decode(batch.targets[0][batch.question[0] == i]) for i in range(len(batch.tasks))]
    asked = {question.answer for question in sample.questions}
    assert answers and set(answers) <= asked
    assert ((batch.targets != NOTHING) == (batch.weights > 0)).all()


def test_patch_labels() -> None:
    image = make(1, "train").image
    chars = [("H", 42, 50, 48, 60), ("i", 50, 50, 52, 60), ("x", 200, 50, 208, 60)]
    labels = patch_labels(Sample(image, [], chars, [("star", "red", 100, 100, 140, 140)], "", "")).reshape(
        GRID, GRID, -1
    )
    at = {name: i for i, name in enumerate(HEADS)}
    here = labels[2, 2]
    assert list(here[:3]) == [CHAR_CLASS["H"], CHAR_CLASS["i"], 0]
    assert here[at["next"]] == here[at["previous"]] == 0
    assert labels[6, 6, at["centre"]] == labels[6, 6, at["kind"]] == KIND_CLASS["star"]
    assert labels[6, 6, at["colour"]] == COLOUR_CLASS["red"]
    assert (labels[..., at["centre"]] > 0).sum() == 1
    assert (labels[5, 9, at["row"]], labels[5, 9, at["column"]]) == (5, 9)


def test_pointing(vocabulary: Vocabulary) -> None:
    """What is spelled points at its characters, a named shape at its patches, and each answer's token one ahead."""
    chars = [(char, 10 + 20 * i, 200, 20 + 20 * i, 214) for i, char in enumerate("Kettle12")]
    shapes = [("star", "red", 0, 0, 40, 40), ("star", "blue", 200, 0, 240, 40)]
    places = Places(Sample(make(1, "train").image, [], chars, shapes, "", ""))
    word = vocabulary.encode(' "Kettle"?')
    about = places.of_tokens(word, vocabulary)
    assert [patches if patches is None else patches.nonzero()[0].tolist() for patches in about] == [
        None, *([160 + column] for column in range(6)), None
    ]  # fmt: skip
    assert places.of_tokens(vocabulary.encode(" Kettel"), vocabulary) == [None] * 7
    assert places.spelled("t") == []  # twice

    asked, answer = vocabulary.encode("what color is the blue star"), [*vocabulary.encode("star"), vocabulary.end]
    about, ahead = targets(places, asked, answer, vocabulary)
    assert about[5].sum() > about[4].sum() == 4
    assert (ahead[len(asked) - 1] == about[4]).all()
    assert ahead[-1] is None


def test_a_killed_training_goes_on(tmp_path: Path, root: Path) -> None:
    """Killed at any moment after its first checkpoint, it goes on; its export loads, and another learns of it."""
    command = [
        sys.executable,
        "-m",
        "training.train_teacher",
        str(tmp_path),
        "--patch-minutes",
        "0.05",
        "--batch",
        "1",
        "--tiny",
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    first = subprocess.Popen([*command, "--minutes", "60"], cwd=root, env=env, stderr=subprocess.PIPE, text=True)
    try:
        for line in first.stderr:
            if "saved" in line:
                break
    finally:
        first.kill()
        first.wait()
    again = subprocess.run(
        [*command, "--minutes", "0.15"], cwd=root, env=env, stderr=subprocess.PIPE, text=True, timeout=120, check=True
    )
    assert "going on from" in again.stderr
    model, vocabulary = export.load(tmp_path / "checkpoint.pt")
    export.export(model, vocabulary, tmp_path, "q8_0")
    with Model.load(tmp_path / "model.gguf", tmp_path / "mmproj.gguf") as loaded, loaded.chat() as chat:
        chat.answer("What is this?", make(1, "test").image, max_tokens=2)

    command = [
        sys.executable,
        "-m",
        "training.train_student",
        str(tmp_path / "dynamic"),
        str(tmp_path / "checkpoint.pt"),
    ]
    subprocess.run(
        [*command, "--patch-minutes", "0.05", "--minutes", "0.15", "--batch", "1", "--tiny"], cwd=root, env=env,
        timeout=120, check=True,
    )  # fmt: skip
    export.export(*export.load(tmp_path / "dynamic" / "checkpoint.pt"), tmp_path, "q8_0")
    with Model.load(tmp_path / "model.gguf", tmp_path / "mmproj.gguf") as loaded, loaded.chat() as chat:
        chat.answer("What is this?", make(1, "test").image.resize((140, 200)), max_tokens=2)
        assert chat.stats.n_visual == 7 * 10
        chat.answer("What is this?", make(1, "test").image.resize((700, 700)), max_tokens=2)
        assert chat.token_maps[-1].n_patches == export.MOST_PIXELS // TOKEN**2  # by the file's own limit

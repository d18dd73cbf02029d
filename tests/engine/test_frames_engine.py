"""Frames of one scene from the Python API, the handler and the commands."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfv_edge.engine.images import load as load_image
from halfv_edge.engine.model import Model
from halfv_edge.engine.model_profile import resolve_profile
from halfv_edge.engine.options import Pruning
from halfv_edge.errors import HalfVError
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from tests.support import ROOT, llama_chat
from tests.support.holes import noise
from tests.support.vlm import NEXT, QUESTION, Vlms, last_prompt, retell

SIDE, COLUMNS, ROWS = 28, 10, 9
WHOLE = Profile(1, 1.0, 0.1, 6, 1.0, "dropped")  # prunes nothing


def scene(count: int) -> list[Image.Image]:
    room = noise(COLUMNS * SIDE, ROWS * SIDE, SIDE)
    frames = []
    for number in range(count):
        frame = room.copy()
        frame[2 * SIDE : 4 * SIDE, number * SIDE : number * SIDE + 2 * SIDE] = 200
        frames.append(Image.fromarray(frame))
    return frames


@pytest.fixture
def model(vlms: Vlms) -> Model:
    return vlms.load("qwen2vl", profile=WHOLE, frames_tau=0)


def counts(model: Model, *pictures: Image.Image) -> list[int]:
    """Tokens of each, in one message."""
    with model.chat(mode="exact") as chat:
        chat.answer(QUESTION, pictures, max_tokens=2)
        return [token_map.n_visual for token_map in chat.token_maps]


def test_several_pictures(model: Model) -> None:
    """An answer is what the whole conversation at once gives; another message begins anew."""
    first, second, third = scene(3)
    with model.chat(mode="exact") as chat:
        for question, pictures in ((QUESTION, [first, second, third]), (NEXT, []), (QUESTION, [second])):
            answer = chat.answer(question, pictures, max_tokens=10, temperature=0)
            assert answer == retell(model, last_prompt(chat), 10)
        found = [token_map.n_visual for token_map in chat.token_maps]
    whole = COLUMNS * ROWS
    # what the block covers and what it uncovers, and one of each other cell
    assert found == [whole, 4 + 3, 4 + 3, whole]
    assert counts(model, first, first) == [whole, 4]


def test_an_answer_depends_on_its_own_conversation_alone(vlms: Vlms, model: Model) -> None:
    """Whatever was asked before, and is remembered."""
    first, second, other = scene(3)

    def ask(one: Model, *pictures: Image.Image) -> tuple[str, list[list[int]]]:
        with one.chat(mode="exact") as chat:
            answer = chat.answer(QUESTION, pictures, max_tokens=12, temperature=0)
            return answer, [token_map.tiles[0].entered for token_map in chat.token_maps]

    alone = ask(model, first, second)
    n_encoded = model.encoder.n_encoded
    after = ask(model, other, second)
    assert after[1][1] != alone[1][1]
    assert ask(model, first, second) == alone
    assert ask(model, other, second) == after
    assert model.encoder.n_encoded == n_encoded + 2  # each behind its own
    fresh = vlms.load("qwen2vl", profile=WHOLE, frames_tau=0, image_cache_mb=0)
    assert (ask(fresh, other, second), ask(fresh, first, second)) == (after, alone)


def test_pictures_that_were_not_given_after_all(model: Model) -> None:
    """They are not what the next is compared with."""
    first, second, third = scene(3)
    with model.chat(mode="exact") as chat:
        chat.add_image(first)
        with pytest.raises(HalfVError):
            chat.answer("word " * 2000, [third], max_tokens=2)
        chat.answer(QUESTION, [second], max_tokens=2)
        found = [token_map.tiles[0].entered for token_map in chat.token_maps]
    with model.chat(mode="exact") as chat:
        chat.answer(QUESTION, [first, second], max_tokens=2)
        assert found == [token_map.tiles[0].entered for token_map in chat.token_maps]


def test_off_is_as_it_was(vlms: Vlms) -> None:
    first, second = scene(2)
    model = vlms.load("qwen2vl", profile=WHOLE)
    assert counts(model, first, second) == [COLUMNS * ROWS] * 2
    assert model.encoder.frames() is None
    assert model.encoder.tokens(load_image(first)).digest == load_image(first).digest()
    assert vlms.load("llava", frames_tau=0).encoder.frames() is None  # takes pictures whole


def test_which_bound(vlms: Vlms) -> None:
    about = ModelFile.read(vlms.path("qwen2vl"))

    def found(**given: object) -> float | None:
        profile = resolve_profile(about, Pruning(**given)).profile
        return profile and profile.frames_tau

    carries = {**WHOLE.to_json(), "frames": {"tau": 2}}
    assert found() is None and found(frames_tau=3) == 3
    assert found(profile=carries) == 2 and found(profile=carries, frames_tau="off") is None
    for wrong, rule in ((-1, "between 0 and 255"), (256, "between 0 and 255"), ("on", "a number, between 0 and 255")):
        with pytest.raises(HalfVError, match=rf"^frames_tau = '?{wrong}'? is not valid: it must be {rule}\.$"):
            found(frames_tau=wrong)


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def test_handler(tmp_path: Path) -> None:
    """As llama_cpp's own, for which libmtmd compares the pictures of a conversation that is one text."""
    place = llama_chat.Place(tmp_path, "qwen2vl")
    first, second = map(_uri, scene(2))
    talk = [
        llama_chat.user(QUESTION, first, second), llama_chat.assistant("a cat</s>"), llama_chat.user(NEXT, second)
    ]  # fmt: skip
    for _ in llama_chat.closing(place):
        carries = place.carrying(dataclasses.replace(WHOLE, frames_tau=0))
        ours, upstream = place.ours(path=place.whole, profile=WHOLE, frames_tau=0), place.upstream(path=carries)
        answers = [(chat.text(talk[:1]), chat.text(talk)) for chat in (ours, upstream, place.ours(path=carries))]
        assert answers[0] == answers[1] == answers[2]
        assert ours.stats.n_patches == 3 * COLUMNS * ROWS
        assert ours.stats.n_visual == 2 * COLUMNS * ROWS + 7
        assert ours.text(talk[:1]) == answers[0][0]  # behind others that are remembered


def test_frames_end_with_their_message(model: Model) -> None:
    encoder = model.encoder
    first, second = map(load_image, scene(6)[4:])  # which no other test encodes
    frames = encoder.frames([first])
    behind = encoder.tokens(second, frames)
    assert behind.n_tokens < encoder.tokens(second).n_tokens
    assert behind.digest != encoder.tokens(second).digest
    assert encoder.encode(behind) is not None and encoder.encode(behind) is None
    assert np.isfinite(behind.chunks[0].embd).all()


def test_what_answers_lose_is_counted(tmp_path: Path) -> None:
    """By the script of docs/pixel-pruning.md, on the demo model: twice the same picture is one of it, and a patch of
    each 8 x 8."""
    Image.fromarray(noise(320, 320, 20)).save(tmp_path / "noise.png")
    question = {"image": "noise.png", "question": "Is there a blue square?", "answers": ["yes", "no"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    script = ROOT / "scripts" / "frames.py"
    found = subprocess.run(
        [sys.executable, script, "answers", tmp_path / "questions.jsonl"], check=True, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    tokens = {(line["frames_tau"], line["message"]): line["tokens"] for line in lines}
    assert [tokens["off", message] for message in ("alone", "twice", "half, then whole")] == [256, 256, 256]
    assert [tokens[0, message] for message in ("alone", "twice", "half, then whole")] == [256, 4, 130]
    assert all(0 <= line["right"] <= line["of"] == 1 for line in lines)

"""The choice before the language model from the Python API, the handler and the commands, and pruning after it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import halfv_cpp
import numpy as np
import pytest
from PIL import Image

from halfv_edge.draw.token_map import draw_token_map
from halfv_edge.engine.images import load as load_image
from halfv_edge.engine.model import Model
from halfv_edge.engine.model_profile import resolve_profile
from halfv_edge.engine.options import Pruning
from halfv_edge.errors import HalfVError
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from tests.support import llama_chat
from tests.support.drawn import coverage, entering, page
from tests.support.holes import noise
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import CHATML, NEXT, PROFILE, QUESTION, Vlms, last_prompt, retell

SIDE = 28
COLUMNS, ROWS = 14, 12
PAGE, NOISE = (make(COLUMNS * SIDE, ROWS * SIDE, SIDE) for make in (page, noise))
WHOLE = Profile(1, 1.0, 0.1, 6, 1.0, "dropped")  # prunes nothing
N_ROWS = {"llava": 100, "qwen2vl": COLUMNS * ROWS}
GRID = {"llava": (10, 10), "qwen2vl": (COLUMNS, ROWS)}


@pytest.mark.parametrize("kind", N_ROWS)
def test_shares_are_of_what_arrives(kind: str, vlms: Vlms) -> None:
    n_rows, n_given = N_ROWS[kind], int(0.7 * N_ROWS[kind])
    with vlms.load(kind, input_keep=0.7).chat(mode="exact") as chat:
        chat.answer(QUESTION, [Image.fromarray(NOISE)], max_tokens=2)
        stats, (token_map,) = chat.stats, chat.token_maps
        (encoded,) = chat._conversation.pictures.values()
    with vlms.load(kind).chat(mode="exact") as chat:
        chat.answer(QUESTION, [Image.fromarray(NOISE)], max_tokens=2)
        (whole,) = chat._conversation.pictures.values()
    rows = whole.chunks[0].embd
    given = coverage(rows, 0.7)
    assert np.array_equal(encoded.chunks[0].embd, rows[given])
    (tile,) = token_map.tiles
    counts = (n_rows, n_rows, n_given, n_given // 2, n_given // 10)
    assert (stats.n_patches, stats.n_rows, stats.n_visual, stats.n_kept, stats.n_deep) == counts
    assert (token_map.n_patches, token_map.n_rows, token_map.n_visual, token_map.n_kept, token_map.n_deep) == counts
    assert ((tile.columns, tile.rows), tile.entered, tile.given) == (GRID[kind], list(range(n_rows)), given)
    assert set(tile.deep) < set(tile.kept) < set(tile.given)


@pytest.mark.parametrize("mode", ["prepare", "exact"])
@pytest.mark.parametrize("kind", N_ROWS)
def test_several_turns(kind: str, mode: str, vlms: Vlms) -> None:
    """Without pruning in the language model an answer is what the whole conversation at once gives."""
    model = vlms.load(kind, profile=WHOLE, input_keep=0.5)
    with model.chat(mode=mode) as chat:
        for question, pictures in ((QUESTION, [PAGE]), (NEXT, []), (QUESTION, [NOISE, PAGE])):
            answer = chat.answer(question, map(Image.fromarray, pictures), max_tokens=10, temperature=0)
            assert answer == retell(model, last_prompt(chat), 10)
        assert (chat.stats.n_rows, chat.stats.n_visual) == (3 * N_ROWS[kind], 3 * (N_ROWS[kind] // 2))
        assert chat.n_used < 3 * N_ROWS[kind]


def test_after_patches_that_stayed_out(vlms: Vlms) -> None:
    picture = page(18 * SIDE, 17 * SIDE, SIDE)
    entered = entering(picture, SIDE)
    with vlms.load("qwen2vl", pixel_tau=0, input_keep=0.8).chat(mode="exact") as chat:
        chat.answer(QUESTION, [Image.fromarray(picture)], max_tokens=2)
        stats, (token_map,) = chat.stats, chat.token_maps
    (tile,) = token_map.tiles
    assert (stats.n_patches, stats.n_rows, stats.n_visual) == (306, len(entered), int(0.8 * len(entered)))
    assert tile.entered == entered and set(tile.kept) < set(tile.given) < set(entered)
    assert draw_token_map(token_map).height > 0


def test_remembered_by_content_and_share(vlms: Vlms) -> None:
    picture, digests = load_image(Image.fromarray(NOISE)), []
    for model in (vlms.load("llava", input_keep=0.7), vlms.load("llava", input_keep=0.5), vlms.load("llava")):
        encoded = model.encoder.tokens(picture)
        before = encoded.n_tokens
        model.encoder.encode(encoded)
        assert encoded.n_tokens == before
        digests.append(encoded.digest)
        assert model.encoder.encode(model.encoder.tokens(picture)) is None
    assert len(set(digests)) == 3 and digests[2] == picture.digest()


def test_which_share(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> None:
    about = ModelFile.read(vlms.path("qwen2vl"))

    def found(given: object, input_keep: float | None) -> float | None:
        profile = resolve_profile(about, Pruning(profile=given, input_keep=input_keep)).profile
        return profile and profile.input_keep

    assert found(None, None) == found("qwen2.5-vl-7b", None) == 1
    assert found(None, 0.3) == found("qwen2.5-vl-7b", 0.3) == found("off", 0.3) == 0.3
    assert found(WHOLE.to_json() | {"input": {"keep": 0.4}}, None) == 0.4
    assert found(WHOLE.to_json() | {"input": {"keep": 0.4}}, 1) == 1
    assert resolve_profile(about, Pruning(profile="off", input_keep=1.0)).profile is None
    for wrong in (0, 1.5):
        with pytest.raises(
            HalfVError, match=rf"^input_keep = {wrong} is not valid: it must be above 0 and at most 1\.$"
        ):
            found(None, wrong)
    monkeypatch.setenv("HALFV", "off")
    assert found(None, 0.3) is None


def test_a_language_model_that_cannot_be_pruned(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its profile counts for the encoder; a flag that asks for more is a mistake."""
    monkeypatch.setattr(halfv_cpp, "halfv_model_supported", lambda _: False)
    with Model.load(vlms.path("llava"), n_ctx=512, n_threads=1, input_keep=0.5) as model, model.chat() as chat:
        chat.answer(QUESTION, [Image.fromarray(NOISE)], max_tokens=2)
        stats = chat.stats
        assert (stats.n_rows, stats.n_visual, stats.n_kept, stats.n_deep) == (100, 50, 50, 50)
        assert "This architecture cannot be pruned, so the model runs whole." in model.notes
    for profile in (WHOLE, dataclasses.replace(WHOLE, ivr_keep=0.5)):
        given = dataclasses.replace(profile, input_keep=0.5)
        if profile == WHOLE:
            with Model.load(vlms.path("llava"), n_ctx=512, n_threads=1, profile=given) as model:
                assert model.encoder.intake.input_keep == 0.5
                assert not any("cannot be pruned" in note for note in model.notes)
        else:
            with pytest.raises(HalfVError, match="cannot be pruned: its architecture runs whole"):
                Model.load(vlms.path("llava"), n_ctx=512, n_threads=1, profile=given)
    with Model.load(vlms.path("llava"), n_ctx=512, n_threads=1) as model:
        assert model.profile is None and model.encoder.intake.input_keep == 1


#
# the handler and the commands
#


@pytest.mark.parametrize("kind", N_ROWS)
def test_handler(kind: str, tmp_path: Path) -> None:
    """As llama_cpp's own, which takes the share from the model as every client of libmtmd does."""
    place = llama_chat.Place(tmp_path, kind)
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    talk = [llama_chat.user(QUESTION, uri), llama_chat.assistant("a cat"), llama_chat.user(NEXT)]
    for _ in llama_chat.closing(place):
        carries = place.carrying(dataclasses.replace(WHOLE, input_keep=0.5))
        alike = {"mmproj_type": "off"}  # rows that are nearly alike are chosen by the last bits of an encoder
        ours = place.ours(path=place.whole, profile=WHOLE, input_keep=0.5, **alike)
        chats = (ours, place.upstream(path=carries), place.ours(path=carries, **alike))
        answers = [(chat.text(talk[:1]), chat.text(talk)) for chat in chats]
        assert answers[0] == answers[1] == answers[2]
        assert (ours.stats.n_rows, ours.stats.n_visual) == (N_ROWS[kind], N_ROWS[kind] // 2)


def halfv(folder: Path, command: str, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "halfv_edge", command, "-m", "m.gguf", "--threads", "1", *args]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True)


def test_commands(tmp_path: Path) -> None:
    make_tiny(tmp_path / "m.gguf", "llama", seed=3, profile=PROFILE, **{"tokenizer.chat_template": CHATML})
    make_tiny_mmproj(tmp_path / "mmproj-m.gguf", "llava", n_embd=64)
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    ask = ("a.png", "-p", QUESTION)
    done = halfv(tmp_path, "tokens", *ask, "--input-keep", "0.7", "-o", "map.png", "--json")
    (image,) = json.loads(done.stdout)["images"]
    counts = ("n_patches", "n_rows", "n_visual", "n_kept", "n_deep")
    assert [image[name] for name in counts] == [100, 100, 70, 35, 7]
    assert len(image["given"][0]) == 70 and set(image["kept"][0]) < set(image["given"][0])
    assert done.stderr == "halfv: wrote map.png: 100 -> 70 -> 35 -> 7.\n"
    done = halfv(tmp_path, "chat", *ask, "--profile", "off", "--input-keep", "0.5", "--max-tokens", "4")
    assert " | 100 -> 50 -> 50 -> 50 visual tokens | " in done.stderr
    for value in ("0", "1.5", "nan"):
        done = halfv(tmp_path, "chat", *ask, f"--input-keep={value}")
        assert done.returncode == 2
        assert done.stderr == f"halfv: --input-keep {float(value):g} is not valid: it must be above 0 and at most 1.\n"

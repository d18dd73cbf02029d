"""PixelPrune from the Python API, the handler and the commands, together with pruning in the language model."""

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
from halfv_cpp import log
from PIL import Image

from halfv_edge.draw.token_map import REPEATED, draw_token_map
from halfv_edge.engine.chat import Chat
from halfv_edge.engine.images import load as load_image
from halfv_edge.engine.model import Model
from halfv_edge.engine.model_profile import resolve_profile
from halfv_edge.engine.options import Pruning
from halfv_edge.errors import HalfVError
from halfv_edge.profile.model_file import ModelFile as ProfileModel
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client
from tests.support import llama_chat
from tests.support.drawn import entering, page, screen
from tests.support.holes import noise
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import CHATML, NEXT, PROFILE, QUESTION, Vlms, greedy, last_prompt, retell, text_of

SIDE = 28
COLUMNS, ROWS = 18, 17
PAGE, SCREEN, NOISE = (make(COLUMNS * SIDE, ROWS * SIDE, SIDE) for make in (page, screen, noise))
WHOLE = Profile(1, 1.0, 0.1, 6, 1.0, "dropped")  # prunes nothing


@pytest.fixture
def model(vlms: Vlms) -> Model:
    return vlms.load("qwen2vl", pixel_tau=0)


def asked(chat: Chat, *pictures: np.ndarray) -> None:
    chat.answer(QUESTION, [Image.fromarray(picture) for picture in pictures], max_tokens=2)


#
# counts and maps
#


def test_what_enters_is_what_is_pruned(model: Model) -> None:
    """Shares in the language model are of the tokens that there are."""
    entered = entering(PAGE, SIDE)
    with model.chat() as chat:
        asked(chat, PAGE)
        stats, (token_map,) = chat.stats, chat.token_maps
    (tile,) = token_map.tiles
    assert (stats.n_patches, stats.n_visual) == (COLUMNS * ROWS, len(entered))
    assert stats.n_visual < 0.7 * stats.n_patches
    assert (stats.n_kept, stats.n_deep) == (len(entered) // 2, len(entered) // 10)
    assert (token_map.n_patches, token_map.n_visual, token_map.n_kept) == (306, len(entered), len(entered) // 2)
    assert (tile.columns, tile.rows, tile.entered) == (COLUMNS, ROWS, entered)
    assert set(tile.deep) < set(tile.kept) < set(entered)
    assert tile.kept == sorted(tile.kept)


def test_a_drawn_map_tells_what_was_not_encoded(model: Model) -> None:
    with model.chat() as chat:
        asked(chat, SCREEN)
        (token_map,) = chat.token_maps
    (tile,) = token_map.tiles
    drawn = draw_token_map(token_map, legend=False)
    scale = (drawn.width - 32) / PAGE.shape[1]
    for place in range(COLUMNS * ROWS):
        row, column = divmod(place, COLUMNS)
        at = tuple(16 + round((n + 0.5) * SIDE * scale) for n in (column, row))
        assert (drawn.getpixel(at) == REPEATED) == (place not in tile.entered)
    assert draw_token_map(token_map).height > drawn.height


def test_nothing_repeats(vlms: Vlms, model: Model) -> None:
    found = []
    for one in (model, vlms.load("qwen2vl")):
        with one.chat(mode="exact") as chat:
            answer = chat.answer(QUESTION, [Image.fromarray(NOISE)], max_tokens=12, temperature=0)
            (encoded,) = chat._conversation.pictures.values()
            found.append((answer, chat.token_maps[0].tiles, chat.stats.n_patches, encoded.chunks[0].embd.tobytes()))
    assert found[0] == found[1]


#
# what is computed
#


@pytest.mark.parametrize("picture", [PAGE, SCREEN], ids=["page", "screen"])
def test_a_plain_client_gets_the_same(picture: np.ndarray, vlms: Vlms, model: Model) -> None:
    """halfv_edge/testing/client.py knows nothing of the engine, and is given positions from the rule in numpy."""
    with model.chat(mode="exact") as chat:
        answer = chat.answer(QUESTION, [Image.fromarray(picture)], max_tokens=12, temperature=0)
        kept = chat.token_maps[0].tiles[0].kept
        (encoded,) = chat._conversation.pictures.values()
    (chunk,) = encoded.chunks
    at = encoded.items.index(chunk)
    entered = np.array(entering(picture, SIDE))
    with Client(vlms.path("qwen2vl"), n_ctx=1024) as client:
        start = [1, *model.tokenize("<|im_start|>user\n"), *encoded.items[:at]]
        client.text(start, logits_last=False)
        client.image(chunk.embd, positions(len(start), entered))
        client.text([*encoded.items[at + 1 :], *model.tokenize(f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n")],
                    pos=len(start) + max(COLUMNS, ROWS))  # fmt: skip
        tokens = greedy(client, 12)
    log.capture()  # the client took the log
    assert answer == text_of(model, tokens)
    assert len(kept) == len(entered) // 2


def positions(first: int, entered: np.ndarray) -> np.ndarray:
    rows, columns = np.divmod(entered, COLUMNS)
    still = np.zeros_like(entered)
    return np.stack([still + first, rows + first, columns + first, still]).astype(np.int32)


@pytest.mark.parametrize("mode", ["prepare", "exact"])
def test_several_turns(mode: str, vlms: Vlms) -> None:
    """Without pruning in the language model an answer is what the whole conversation at once gives."""
    model = vlms.load("qwen2vl", profile=WHOLE, pixel_tau=0)
    with model.chat(mode=mode) as chat:
        for question, pictures in ((QUESTION, [PAGE]), (NEXT, []), (QUESTION, [SCREEN, PAGE])):
            answer = chat.answer(question, map(Image.fromarray, pictures), max_tokens=10, temperature=0)
            assert answer == retell(model, last_prompt(chat), 10)
        assert chat.stats.n_patches == 3 * COLUMNS * ROWS
        assert [m.n_visual for m in chat.token_maps] == [len(entering(p, SIDE)) for p in (PAGE, SCREEN, PAGE)]
        assert chat.n_used < 3 * COLUMNS * ROWS


def test_pruned_over_several_turns(model: Model) -> None:
    with model.chat() as chat:
        chat.add_image(Image.fromarray(PAGE))
        chat.answer(QUESTION, max_tokens=4)
        first = chat.token_maps[0].tiles[0]
        chat.answer(NEXT, max_tokens=4)
        assert chat.stats.n_encoded == 0
        second = chat.token_maps[0].tiles[0]
        asked(chat, SCREEN)
        third = chat.token_maps
    assert set(first.kept) < set(second.kept) < set(second.entered)  # the question's own anchors came back
    assert [m.n_visual for m in third] == [len(entering(p, SIDE)) for p in (PAGE, SCREEN)]


#
# settings
#


def test_counted_before_it_is_encoded(model: Model) -> None:
    for picture in (PAGE, SCREEN, NOISE):
        encoded = model.encoder.tokens(load_image(Image.fromarray(picture)))
        before = encoded.n_tokens
        model.encoder.encode(encoded)
        assert encoded.n_tokens == before
        assert sum(chunk.n_tokens for chunk in encoded.chunks) == len(entering(picture, SIDE))


def test_remembered_by_content_and_tau(vlms: Vlms, model: Model) -> None:
    picture = load_image(Image.fromarray(PAGE))
    digests = []
    for one in (model, vlms.load("qwen2vl", pixel_tau=2), vlms.load("qwen2vl"), model):
        encoded = one.encoder.tokens(picture)
        one.encoder.encode(encoded)
        digests.append(encoded.digest)
    assert len(set(digests)) == 3 and digests[0] == digests[3]
    assert digests[2] == picture.digest()
    n_encoded = model.encoder.n_encoded
    assert model.encoder.encode(model.encoder.tokens(picture)) is None
    assert model.encoder.n_encoded == n_encoded


def test_the_file_may_carry_it(vlms: Vlms) -> None:
    model = vlms.load("qwen2vl", profile=json.loads(json.dumps(WHOLE.to_json())) | {"pixel": {"tau": 0.5}})
    assert model.encoder.intake.pixel_tau == model.profile.pixel_tau == 0.5
    assert vlms.load("llava", pixel_tau=0).encoder.intake.pixel_tau is None


def test_which_tau(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> None:
    about = ProfileModel.read(vlms.path("qwen2vl"))

    def profile(given: object = None, pixel_tau: object = None, **more: object) -> Profile | None:
        return resolve_profile(about, Pruning(profile=given, pixel_tau=pixel_tau, **more)).profile

    def found(*given: object, **more: object) -> float | None:
        return (made := profile(*given, **more)) and made.pixel_tau

    assert found() is None
    assert found(None, 0) == 0 and found(None, 4, keep=0.3) == 4
    assert found("qwen2.5-vl-7b") == 0
    assert found("qwen2.5-vl-7b", "off") is None and found("qwen2.5-vl-7b", 3) == 3
    assert found("off", 1) == 1 and not profile("off", 1).prunes(6)
    assert profile("off", "off") is None
    with pytest.raises(HalfVError, match=r"^pixel_tau = 256 is not valid: it must be between 0 and 255\.$"):
        found(None, 256)
    monkeypatch.setenv("HALFV", "off")
    assert profile(None, 1) is None


#
# the handler and the commands
#


def test_handler(tmp_path: Path) -> None:
    """As llama_cpp's own, which takes tau from the model as every client of libmtmd does."""
    place = llama_chat.Place(tmp_path, "qwen2vl")
    uri = "data:image/png;base64," + _png(PAGE)
    talk = [llama_chat.user(QUESTION, uri), llama_chat.assistant("a cat"), llama_chat.user(NEXT)]
    for _ in llama_chat.closing(place):
        carries = place.carrying(dataclasses.replace(WHOLE, pixel_tau=0))
        ours, upstream = place.ours(path=place.whole, profile=WHOLE, pixel_tau=0), place.upstream(path=carries)
        answers = [(chat.text(talk[:1]), chat.text(talk)) for chat in (ours, upstream, place.ours(path=carries))]
        assert answers[0] == answers[1] == answers[2]
        assert ours.stats.n_patches == COLUMNS * ROWS
        assert ours.stats.n_visual == len(entering(PAGE, SIDE))


def _png(picture: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    for kind, arch in (("qwen2vl", "qwen2vl"), ("llava", "llama")):
        (folder / kind).mkdir()
        make_tiny(folder / kind / "m.gguf", arch, seed=3, profile=PROFILE, **{"tokenizer.chat_template": CHATML})
        make_tiny_mmproj(folder / kind / "mmproj-m.gguf", kind, n_embd=64)
    Image.fromarray(PAGE).save(folder / "page.png")
    return folder


def halfv(folder: Path, command: str, kind: str, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "halfv_edge", command, "-m", f"{kind}/m.gguf", "--threads", "1", *args]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True)


def test_commands(folder: Path) -> None:
    entered = entering(PAGE, SIDE)
    n, kept, deep = len(entered), len(entered) // 2, len(entered) // 10
    ask = ("page.png", "-p", QUESTION, "--pixel-tau", "0")
    done = halfv(folder, "tokens", "qwen2vl", *ask, "-o", "map.png", "--json")
    (image,) = json.loads(done.stdout)["images"]
    assert (image["n_patches"], image["n_visual"], image["n_kept"], image["n_deep"]) == (306, n, kept, deep)
    assert (image["grid"], image["entered"]) == ([[COLUMNS, ROWS]], [entered])
    assert set(image["deep"][0]) < set(image["kept"][0]) < set(entered)
    assert done.stderr == f"halfv: wrote map.png: 306 -> {n} -> {kept} -> {deep}.\n"

    done = halfv(folder, "chat", "qwen2vl", *ask, "--max-tokens", "4")
    assert f" | 306 -> {n} -> {kept} -> {deep} visual tokens | " in done.stderr
    done = halfv(folder, "chat", "llava", *ask, "--max-tokens", "4")
    assert done.stderr.startswith("--pixel-tau 0 has no effect: this encoder takes pictures whole.\n")
    for value, why in (
        ("-1", "halfv: --pixel-tau -1 is not valid: it must be between 0 and 255.\n"),
        ("nan", "halfv: --pixel-tau nan is not valid: it must be between 0 and 255.\n"),
        ("on", "halfv: --pixel-tau 'on' is not valid: it must be a number, or off; "),
    ):
        done = halfv(folder, "chat", "qwen2vl", "page.png", "-p", QUESTION, f"--pixel-tau={value}")
        assert done.returncode == 2 and done.stderr.startswith(why)

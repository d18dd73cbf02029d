"""A twig that drafts: answers are those without it, whatever it says, and it is closed with its chat."""

from __future__ import annotations

from pathlib import Path

import pytest
from halfv_convert import untrained_twig

from halfv_edge.engine import twig
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from tests.support.tiny_models import make_tiny
from tests.support.vlm import KINDS, LONG, NEXT, QUESTION, Vlms, picture

LAYERS = 6  # of the tiny models


@pytest.fixture(scope="module", params=KINDS)
def drafted(
    request: pytest.FixtureRequest, vlms: Vlms, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, Model]:
    """A model without and with a twig, which is nearly the whole of it and so often right."""
    path = tmp_path_factory.mktemp("twig") / "twig.gguf"
    untrained_twig(vlms.path(request.param), path, layers=LAYERS - 2 - 1)
    return vlms.load(request.param), vlms.load(request.param, draft=str(path))


@pytest.fixture(autouse=True)
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models are never sure of anything."""
    monkeypatch.setattr(twig, "LEAST_LIKELY", 0.0)


@pytest.mark.parametrize("mode", ["exact", "prepare"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, "grammar": LONG},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 0, "grammar": LONG, "stop": ("e", "a")},
    ],
    ids=["greedy", "grammar", "seed", "stop"],
)
def test_the_same_conversation(drafted: tuple[Model, Model], mode: str, options: dict) -> None:
    """Two questions, the second with another picture: what is rejected leaves nothing behind."""
    said, counts = [], []
    for model in drafted:
        with model.chat(mode=mode) as chat:
            chat.add_image(picture())
            texts = []
            for question, images in ((QUESTION, ()), (NEXT, [picture(seed=1)]), (QUESTION, ())):
                texts.append(chat.answer(question, images, max_tokens=23, **options))
                counts.append((chat.stats.n_drafted, chat.stats.n_accepted))
                assert chat.n_used == sum(getattr(item, "n_tokens", 1) for item in chat._conversation.context.items)
            said.append((texts, chat.stats.n_generated, chat.stats.stopped, chat.stats.n_kept))
    assert said[0] == said[1]
    assert counts[:3] == [(0, 0)] * 3
    drafts, accepted = (sum(column) for column in zip(*counts[3:], strict=True))
    assert drafts > accepted >= 0 and drafts > 0


def test_some_drafts_are_taken(drafted: tuple[Model, Model]) -> None:
    """With all but one layer of the model it is right now and then, and the answer then takes fewer steps."""
    with drafted[1].chat() as chat:
        text = chat.answer(QUESTION, [picture()], max_tokens=60, temperature=0, grammar=LONG)
        stats = chat.stats
    assert text and 0 < stats.n_accepted < stats.n_drafted


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_lengths_are_kept(drafted: tuple[Model, Model], n: int) -> None:
    for model in drafted:
        with model.chat() as chat:
            chat.answer(QUESTION, [picture()], max_tokens=n, temperature=0, grammar=LONG)
            assert (chat.stats.n_generated, chat.stats.stopped) == (n, "length")


def test_a_full_context(vlms: Vlms, tmp_path: Path) -> None:
    """Drafts never need more room than there is."""
    untrained_twig(vlms.path("llava"), tmp_path / "twig.gguf")
    said = []
    for draft in (None, str(tmp_path / "twig.gguf")):
        options = {"n_ctx": 128, "n_threads": 1, "flash_attn": False, "kv_type": "f32", "profile": "off"}
        with Model.load(vlms.path("llava"), draft=draft, **options) as model, model.chat() as chat:
            said.append((chat.answer(QUESTION, temperature=0, grammar="root ::= [a-z ]{900}"), chat.stats.stopped))
            assert chat.n_used <= chat.n_ctx
    assert said[0] == said[1] and said[0][1] == "length"


@pytest.mark.parametrize("n_batch", [1, 2])
def test_small_batches(n_batch: int, vlms: Vlms, tmp_path: Path) -> None:
    """What is checked at once is one batch."""
    untrained_twig(vlms.path("llava"), tmp_path / "twig.gguf")
    options = {"n_ctx": 256, "n_threads": 1, "n_batch": n_batch, "draft": tmp_path / "twig.gguf"}
    with Model.load(vlms.path("llava"), **options) as model, model.chat() as chat:
        assert chat.answer(QUESTION, temperature=0, max_tokens=9, grammar=LONG)
        assert chat.stats.n_generated == 9 and (chat.stats.n_drafted > 0) == (n_batch > 1)


def test_an_unsure_twig_drafts_nothing(drafted: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twig, "LEAST_LIKELY", 1.1)
    with drafted[1].chat() as chat:
        chat.answer(QUESTION, [picture()], max_tokens=9, temperature=0)
        assert chat.stats.n_drafted == chat.stats.n_accepted == 0


def test_mistakes(vlms: Vlms, tmp_path: Path) -> None:
    path = vlms.path("llava")
    with pytest.raises(HalfVError, match=r"is not a twig, as it has no twig\.layer: `halfv twig` makes one"):
        Model.load(path, draft=path)
    with pytest.raises(HalfVError, match=r"nothing\.gguf cannot be read"):
        Model.load(path, draft=tmp_path / "nothing.gguf")
    for arch, changes, said in (
        ("qwen2", {}, "is a twig of a qwen2 model, and .* is llama"),
        ("llama", {"n_embd": 128}, "it has 128 floats per token, and that model has 64"),
        ("llama", {"n_vocab": 600}, "it has 600 tokens in its vocabulary, and that model has"),
    ):
        untrained_twig(make_tiny(tmp_path / "other.gguf", arch, **changes), tmp_path / "twig.gguf")
        with pytest.raises(HalfVError, match=said):
            Model.load(path, draft=tmp_path / "twig.gguf")

"""The plug-in of lmms-eval, against a stand-in for the parts of lmms-eval that it uses."""

from __future__ import annotations

import importlib
import re
import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from halfv_edge.errors import HalfVError, RunError
from tests.support.vlm import QUESTION, Vlms, picture


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Cache:
    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def add_partial(self, *what: object) -> None:
        self.seen.append(what)


class Lmms:
    is_simple = True

    def __init__(self) -> None:
        self.cache_hook = Cache()
        self.task_dict: dict = {}


@dataclass
class Request:
    args: tuple


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, root: Path):
    """What the entry point in pyproject.toml names, with the stand-in imported."""
    for name in (
        "lmms_eval",
        "lmms_eval.api",
        "lmms_eval.api.model",
        "lmms_eval.models",
        "lmms_eval.models.registry_v2",
    ):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Lmms
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest
    monkeypatch.delitem(sys.modules, "halfv_edge.measure.eval.lmms_eval", raising=False)
    found = re.search(
        r'\[project\.entry-points\."(lmms_eval\.models)"\]\n(\w+) = "([^"]+)"', (root / "pyproject.toml").read_text()
    )
    yield EntryPoint(found[2], found[3], found[1]).load()
    sys.modules.pop("halfv_edge.measure.eval.lmms_eval", None)


def load(manifest: ModelManifest, path: Path, **options: object):
    module, _, name = manifest.simple_class_path.rpartition(".")
    made = getattr(importlib.import_module(module), name)(
        str(path), n_ctx=1024, n_threads=1, batch_size="1", device="cpu", **options
    )
    assert isinstance(made, Lmms)
    assert made.is_simple
    return made


def ask(model, pictures: list, question: str = QUESTION, **settings: object) -> list[str]:
    model.task_dict = {"vqa": {"test": pictures}}
    settings = {"max_new_tokens": 5, "temperature": 0, "do_sample": False} | settings
    args = [(f"<image>\n{question}", settings, lambda doc: [doc], at, "vqa", "test") for at in range(len(pictures))]
    return model.generate_until([Request(one) for one in args])


def test_answers_are_those_of_a_chat(plugin, vlms: Vlms) -> None:
    manifest = plugin()
    assert manifest.model_id == "halfv"
    model = load(manifest, vlms.path("qwen2vl"))
    pictures = [picture(at, 336, 280) for at in range(2)]
    answers = ask(model, pictures)
    with model.halfv.chat(mode="exact") as chat:
        for shown, answer in zip(pictures, answers, strict=True):
            chat.reset()
            assert chat.answer(QUESTION, shown, temperature=0, max_tokens=5) == answer
            assert chat.stats.n_kept == 60
    assert [what[2] for what in model.cache_hook.seen] == answers
    stop = next(letter for letter in answers[0] if letter.strip())
    assert ask(model, pictures[:1], until=[stop]) == [answers[0].partition(stop)[0]]
    model.halfv.close()


def test_mistakes(plugin, vlms: Vlms) -> None:
    with pytest.raises(HalfVError, match="batch_size = 4 is not valid"):
        importlib.import_module("halfv_edge.measure.eval.lmms_eval").HalfV("model.gguf", batch_size=4)
    model = load(plugin(), vlms.path("qwen2vl"))
    with pytest.raises(RunError, match="was to be pruned and never was, in 1 pictures"):
        ask(model, [picture(0, 112, 112)])
    with pytest.raises(NotImplementedError):
        model.loglikelihood([])
    model.halfv.close()

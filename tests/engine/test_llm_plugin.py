"""examples/llm_halfv.py, with a stand-in for the few names of llm that it uses."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from halfv_edge import Model
from tests.support import ROOT
from tests.support.vlm import NEXT, QUESTION, Vlms, picture


class LlmError(Exception):
    pass


class Options:
    """As pydantic's models: annotated fields, defaults, model_dump."""

    def __init__(self, **given: Any):
        self.given = {name: getattr(type(self), name) for name in type(self).__annotations__} | given

    def model_dump(self, exclude_none: bool) -> dict[str, Any]:
        return {name: value for name, value in self.given.items() if value is not None or not exclude_none}


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "png")
    return file.getvalue()


@pytest.fixture
def plugin(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    llm = ModuleType("llm")
    llm.hookimpl, llm.Model, llm.Options, llm.ModelError = (lambda function: function), object, Options, LlmError
    monkeypatch.setitem(sys.modules, "llm", llm)
    monkeypatch.setenv("HALFV_MODEL", str(vlms.path("llava")))
    spec = importlib.util.spec_from_file_location("llm_halfv", ROOT / "examples" / "llm_halfv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    if module.load.cache_info().currsize:
        module.load().close()


def prompt(text: str, *pictures: bytes, system: str | None = None, **options: Any) -> Any:
    attachments = [SimpleNamespace(content_bytes=lambda raw=raw: raw) for raw in pictures]
    return SimpleNamespace(prompt=text, system=system, attachments=attachments, options=Options(**options))


def test_it_answers_and_goes_on(plugin: Any, vlms: Vlms) -> None:
    registered: list[Any] = []
    plugin.register_models(registered.append)
    (model,) = registered
    greedy = {"max_tokens": 8, "temperature": 0}
    assert model.Options().model_dump(exclude_none=True) == {"temperature": 0.2}

    first = prompt(QUESTION, png(1), system="the cat", **greedy)
    pieces = list(model.execute(first, True, None, None))
    earlier = SimpleNamespace(prompt=first, attachments=first.attachments, text=lambda: "".join(pieces))
    second = prompt(NEXT, png(2), system="the cat", **greedy)
    later = "".join(model.execute(second, True, None, SimpleNamespace(responses=[earlier])))

    with Model.load(vlms.path("llava")) as alone:
        with alone.chat("the cat") as chat:
            assert "".join(pieces) == chat.answer(QUESTION, png(1), **greedy)
            said = chat.messages
        with alone.chat(messages=said) as chat:
            assert later == chat.answer(NEXT, png(2), **greedy)


def test_mistakes_are_llms_own_errors(plugin: Any) -> None:
    with pytest.raises(LlmError, match="is not an image that can be read"):
        list(plugin.HalfV().execute(prompt(QUESTION, b"nothing"), True, None, None))

"""What editors show of the public names: it is there, it names every parameter, and its examples run."""

from __future__ import annotations

import asyncio
import doctest
import textwrap
from pathlib import Path
from typing import Any

import pytest

import halfv_edge
from halfv_edge import Model
from tests.support.docstrings import assert_documented, public, sections
from tests.support.vlm import QUESTION, Vlms, picture

PUBLIC = {name: (thing, doc) for name, thing, doc in public(halfv_edge)}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_says_what_it_is(name: str) -> None:
    assert_documented(name, *PUBLIC[name])


EXAMPLES = {name: sections(doc)["Example"] for name, (_, doc) in PUBLIC.items() if "Example" in sections(doc)}


def test_what_people_begin_with_has_an_example() -> None:
    first = ("Model.load", "Model.chat", "Model.answer", "Model.answer_many", "Chat.ask", "Chat.answer", "Chat.aask")
    assert set(first) | {"Answer", "AsyncAnswer", "AnswerOptions", "ModelOptions", "HalfVError"} <= EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vlms: Vlms) -> None:
    monkeypatch.chdir(tmp_path)
    model = vlms.load("qwen2vl")
    for file in (model.path, model.encoder.path):
        (tmp_path / file.name).symlink_to(file)
    for seed, file in enumerate(("cat.jpg", "dog.png")):
        picture(seed).save(tmp_path / file)
    example = EXAMPLES[name]
    with model.chat() as chat, model.chat() as asked:
        asked.answer(QUESTION, picture(), max_tokens=2)
        known: dict[str, Any] = {"model": model, "chat": chat, "Model": Model, "asked": asked}
        known |= {name: getattr(halfv_edge, name) for name in halfv_edge._HOME if name != "HalfVChatHandler"}
        if ">>>" in example:
            test = doctest.DocTestParser().get_doctest(example, known, name, None, None)
            assert doctest.DocTestRunner().run(test).failed == 0
        elif "await " in example:
            exec(f"async def run():\n{textwrap.indent(example, '    ')}", known)
            asyncio.run(known["run"]())
        else:
            exec(example, known)

"""What editors show of the public names: it is there, it names every parameter, and its examples run."""

from __future__ import annotations

import asyncio
import doctest
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import halfv_edge
from halfv_edge import Model
from tests.support.vlm import QUESTION, Vlms, picture

SECTION = re.compile(r"^(Args|Returns|Raises|Example):$", re.MULTILINE)


def public() -> Iterator[tuple[str, Any, str]]:
    """Name, object and docstring of all that may be imported from halfv_edge, and of what belongs to it."""
    for name in halfv_edge._HOME:
        thing = getattr(halfv_edge, name)
        yield name, thing, inspect.getdoc(thing) or ""
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                yield f"{name}.{member}", value, inspect.getdoc(value) or ""


PUBLIC = {name: (thing, doc) for name, thing, doc in public()}


def sections(doc: str) -> dict[str, str]:
    """The text of each section, and of what comes before them under ""."""
    parts = SECTION.split(doc)
    return {"": parts[0]} | {name: textwrap.dedent(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_says_what_it_is(name: str) -> None:
    thing, doc = PUBLIC[name]
    found = sections(doc)
    first = found[""].split("\n\n")[0].strip()
    assert first.endswith((".", ":")), f"{name} has no docstring that begins with a sentence"
    assert first[0].isupper() or first[0] in '"`', f"{name}: a docstring is read alone, so it begins anew"
    if inspect.isfunction(thing) and not first.startswith("As `"):
        signature = inspect.signature(thing)
        wanted = [at for at in signature.parameters if at not in ("self", "cls", "_", "fields")]
        described = re.findall(r"^(\w+): ", found.get("Args", ""), re.MULTILINE)
        assert described == wanted, f"{name}: Args must name its parameters, in their order"
        returns = str(signature.return_annotation)
        needs = returns not in ("None", "Iterator[str]") and bool(wanted)
        assert not needs or "Returns" in found, f"{name}: Returns is missing"


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

"""What docstrings of public names must say."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

SECTION = re.compile(r"^(Args|Returns|Raises|Example):$", re.MULTILINE)


def public(package: ModuleType) -> Iterator[tuple[str, Any, str]]:
    """Name, object and docstring of all that may be imported from a package, and of what belongs to it."""
    for name in package._HOME:
        thing = getattr(package, name)
        yield name, thing, inspect.getdoc(thing) or ""
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                yield f"{name}.{member}", value, inspect.getdoc(value) or ""


def sections(doc: str) -> dict[str, str]:
    """The text of each section, and of what comes before them under ""."""
    parts = SECTION.split(doc)
    return {"": parts[0]} | {name: textwrap.dedent(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def assert_documented(name: str, thing: Any, doc: str) -> None:
    """It begins with a sentence that can be read alone; a function names its parameters and says what it returns."""
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

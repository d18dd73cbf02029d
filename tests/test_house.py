"""The plan of the house: imports go downwards between its floors and never in a circle; no source file is too long."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PLACES = {"halfv_edge": ROOT, "halfv_cpp": ROOT / "bindings", "halfv_convert": ROOT / "convert", "training": ROOT}
# from the lowest floor up; those of one floor do not import each other
FLOORS = (
    ("halfv_cpp",),
    ("halfv_edge.errors", "halfv_edge.lazy_names"),
    ("halfv_edge.files",),
    ("halfv_edge.gguf",),
    ("halfv_edge.profile",),
    ("halfv_edge.hub", "halfv_edge.testing", "halfv_convert"),
    ("halfv_edge.engine",),
    ("halfv_edge.handler", "halfv_edge.draw"),
    ("halfv_edge.measure",),
    ("halfv_edge.server",),
    ("halfv_edge.cli",),
    ("halfv_edge.__main__",),
    ("training",),  # beside the house: nothing of it
)
FACE = "halfv_edge"  # its names are looked up when they are used, in any floor
CIRCLES: set[frozenset[str]] = set()
MOST_LINES = 500
SOURCES = ("*.py", "*.c", "*.h", "*.cpp", "*.cmake")
FOLDERS = ("halfv_edge", "bindings", "convert", "training", "tests", "native", "examples", "cmake", "scripts")


def modules() -> dict[str, Path]:
    found = {}
    for package, place in PLACES.items():
        for path in sorted((place / package).rglob("*.py")):
            parts = path.relative_to(place).with_suffix("").parts
            if "_upstream" not in parts:
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Our modules that a file imports, for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in whole}
    return found & known.keys()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    assert len(known) > 100
    return {name: imports(path, known) - {name} for name, path in known.items()}


def folder(name: str) -> tuple[int, str]:
    """Floor and room of a module."""
    for level, rooms in enumerate(FLOORS):
        for room in rooms:
            if name == room or name.startswith(room + "."):
                return level, room
    raise AssertionError(f"{name} is on no floor: give it one in FLOORS")


def test_no_import_goes_upwards(graph: dict[str, set[str]]) -> None:
    wrong = []
    for name in graph.keys() - {FACE}:
        (level, room) = folder(name)
        for other in graph[name] - {FACE}:
            below, there = folder(other)
            if room != there and (below >= level or room == "training"):
                wrong.append(f"{name} imports {other}")
    assert sorted(wrong) == []


def test_no_test_imports_one_of_another_folder() -> None:
    """What they share is in tests/support, or a fixture of conftest.py."""
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        for folder in re.findall(r"^\s*(?:from|import) tests\.(\w+)", path.read_text(), re.MULTILINE):
            if folder not in ("support", path.parent.name):
                found.append(f"{path.relative_to(ROOT)} imports tests.{folder}")
    assert found == []


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, left = set(), [start]
    while left:
        for name in graph[left.pop()] - seen - {FACE}:
            seen.add(name)
            left.append(name)
    return seen


def circles(graph: dict[str, set[str]]) -> Iterator[frozenset[str]]:
    ways = {name: reached(graph, name) for name in graph}
    for name in graph:
        if name in ways[name]:
            yield frozenset(other for other in ways[name] if name in ways[other])


def test_no_two_modules_import_each_other(graph: dict[str, set[str]]) -> None:
    """CIRCLES may only become fewer: one that is gone must leave it."""
    assert set(circles(graph)) == CIRCLES


def test_the_test_sees_circles_and_longer_ones() -> None:
    assert set(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {frozenset("abc")}


def test_no_file_is_too_long() -> None:
    files = [path for name in FOLDERS for pattern in SOURCES for path in (ROOT / name).rglob(pattern)]
    ours = [
        path
        for path in files
        if not {"_upstream", "include", "lib"}
        & set(path.relative_to(ROOT / "halfv_edge").parts if path.is_relative_to(ROOT / "halfv_edge") else ())
    ]
    assert len(ours) > 200
    long = {str(path.relative_to(ROOT)) for path in ours if path.read_text().count("\n") > MOST_LINES}
    assert long == set()

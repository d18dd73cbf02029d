"""The names that people import from halfv_edge.measure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from halfv_edge import measure
from tests.support.docstrings import assert_documented, public

PUBLIC = {name: (thing, doc) for name, thing, doc in public(measure)}


def test_every_name_is_there() -> None:
    for name in measure._HOME:
        assert getattr(measure, name).__name__ == name
    assert set(measure._HOME) <= set(dir(measure))
    with pytest.raises(AttributeError, match="no attribute 'run_benhc'"):
        measure.run_benhc  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_says_what_it_is(name: str) -> None:
    assert_documented(name, *PUBLIC[name])


def test_importing_it_imports_nothing_heavy() -> None:
    check = "import sys, halfv_edge.measure; print([m for m in ('numpy', 'PIL', 'halfv_cpp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "[]\n"

"""The table of families in docs/models.md, line by line, is what the libraries do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import matrix
from tests.support.hf_reference import SIZES

LISTED = matrix.listed()
pytestmark = pytest.mark.long


def test_all_are_listed() -> None:
    assert list(LISTED) == [family.name for family in matrix.FAMILIES]
    assert {family.checkpoint for family in matrix.FAMILIES if family.checkpoint} == set(SIZES)


@pytest.mark.parametrize("family", matrix.FAMILIES, ids=lambda family: family.name)
def test_line(family: matrix.Family, build_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    program = build_dir / "bin" / "save-archs"
    assert matrix.line(family, program, tmp_path_factory.getbasetemp(), tmp_path) == LISTED[family.name]

"""Tiny checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.converted import Pair, convert_tiny


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return partial(convert_tiny, root=tmp_path_factory.getbasetemp())


@pytest.fixture
def llava(pairs: Callable[[str], Pair], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(pairs("llava").folder, tmp_path / "tiny"))

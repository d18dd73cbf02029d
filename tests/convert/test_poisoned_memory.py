"""What memory held before it was given out changes nothing, whatever encoder and model: it is full of NaN here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.converted import Pair
from tests.support.drive_poisoned import all_logits
from tests.support.hf_reference import SIZES
from tests.support.tiny_families import FAMILIES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="poisons memory by a preloaded library")


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory, cmake_cache: dict[str, str], root: Path) -> Path:
    built = tmp_path_factory.mktemp("poison") / "poison_memory.so"
    source = root / "tests/native/poison_memory.c"
    subprocess.run([cmake_cache["CMAKE_C_COMPILER"], "-shared", "-fPIC", "-O2", source, "-o", built], check=True)
    return built


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family: str, pairs: Callable[[str], Pair], poison: Path, root: Path, tmp_path: Path) -> None:
    pair = pairs(family)
    out = tmp_path / "logits.npy"
    arguments = [pair.text, pair.vision, *map(str, SIZES[family]), out]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.drive_poisoned", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | {"LD_PRELOAD": str(poison)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.array_equal(np.load(out), all_logits(pair.text, pair.vision, *SIZES[family]))

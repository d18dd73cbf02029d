"""The model that is built in answers about the pictures in examples/, with nothing but the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.hub.demo import DEMO_NOTE, demo_model
from halfv_edge.hub.find import find_files
from training.examples import EXAMPLES, Example
from training.pictures import make

MOST_MB = 40


@pytest.fixture(scope="module")
def model() -> Model:
    with Model.load(*demo_model(), n_ctx=1024) as loaded:
        yield loaded


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_answers(model: Model, example: Example) -> None:
    """Whole, and with the profile that is inside."""
    assert model.profile is not None
    for options in ({}, {"profile": "off"}):
        with Model.load(*demo_model(), n_ctx=1024, **options) as loaded, loaded.chat(mode="exact") as chat:
            assert chat.answer(example.question, example.path, temperature=0) == example.answer


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_pictures_are_what_the_seeds_draw(example: Example) -> None:
    drawn = make(example.seed, "test", example.kind).image
    assert np.array_equal(np.asarray(Image.open(example.path)), np.asarray(drawn))


def test_chat_without_a_model(tmp_path: Path) -> None:
    """From any folder, without a network; what it is is said on stderr."""
    example = EXAMPLES[0]
    env = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "halfv_edge", "chat", str(example.path), "-p", example.question]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == example.answer + "\n"
    assert DEMO_NOTE in done.stderr


def test_default_files() -> None:
    found = find_files(None, None, None)
    assert (found.model, found.mmproj) == demo_model()
    assert sum(path.stat().st_size for path in demo_model()) < MOST_MB << 20
    with pytest.raises(HalfVError, match="No model was given"):
        find_files(None, None, str(found.mmproj))

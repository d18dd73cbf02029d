"""A draft model beside one with one-dimensional positions: it is given the rows that go on, at their own positions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfv_edge.profile.profile import Profile
from halfv_edge.testing.server import RunningServer, Server, about
from tests.support.converted import convert_tiny
from tests.support.demo_server import post
from tests.support.tiny_models import make_tiny

TEMPLATE = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("keep", "n_visual"), [(1.0, 36), (0.4, 14)])
def test_pictures_that_lack_rows(
    keep: float, n_visual: int, programs: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair = convert_tiny("llava", root=tmp_path_factory.getbasetemp())
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)).save(picture)
    profile = Profile(1, 1.0, 0.1, 2, 1.0, "dropped", min_visual_tokens=1, input_keep=keep)
    flags = ("-md", str(pair.text), "--spec-type", "draft-simple", "-np", "1", "-c", "512", "--chat-template", TEMPLATE)
    env = {"HALFV_PROFILE": json.dumps(profile.to_json())}
    with Server(programs, pair.text, pair.vision, "--jinja", *flags, env=env) as server:
        status, answer = post(server, {"messages": about(picture, "what is the picture"), "max_tokens": 4})
        assert status == 200, server.log()
        assert answer["usage"]["prompt_tokens_details"]["visual_tokens"] == n_visual


def test_a_variable_that_does_not_fit_the_draft(programs: Path, tmp_path: Path) -> None:
    """It is for both models, and the log says which of them cannot have it."""
    model = make_tiny(tmp_path / "model.gguf", "llama", n_layer=6)
    draft = make_tiny(tmp_path / "draft.gguf", "llama", n_layer=2, seed=1)
    env = {"HALFV_PROFILE": json.dumps(Profile(2, 0.5, 0.1, 4, 0.1, "dropped").to_json())}
    command = [str(programs / "llama-server"), "-m", str(model), "-t", "1", "-c", "256", "--no-warmup"]
    with RunningServer(command, env=env):
        pass
    with pytest.raises(RuntimeError) as ended:
        RunningServer([*command, "-md", str(draft), "--spec-type", "draft-simple"], env=env)
    assert (
        'halfv: HALFV_PROFILE, for the model "tiny-llama-1": halfv.ivr.layer = 2 is not valid: it must be at least 1 '
        "and below the model's 2 layers\n"
    ) in str(ended.value)

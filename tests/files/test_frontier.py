"""Profiles by speed, in a model's file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from halfv_edge.cli.main import main
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import STRING
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import frontier, stored
from halfv_edge.profile.frontier import KEY, Point
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Calibration, Profile
from tests.support.vlm import Vlms, picture

SLOW = Point(1.5, 0.001, Profile(3, 0.6, 0.1, 6, 1.0, "dropped", min_visual_tokens=1))
FAST = Point(4.0, 0.3, Profile(1, 0.1, 0.5, 6, 1.0, "dropped", min_visual_tokens=1, pixel_tau=0.0, input_keep=0.5))


@pytest.fixture
def model(tmp_path: Path, vlms: Vlms) -> Path:
    """A tiny model whose file carries two points."""
    source, path = vlms.path("qwen2vl"), tmp_path / "model.gguf"
    about = ModelFile.read(source)
    keys = SLOW.profile.to_gguf() | frontier.to_gguf([FAST, SLOW])
    replace_keys(about.metadata, "halfv.", keys, path, progress=False)
    shutil.copy(source.parent / "mmproj-model.gguf", tmp_path)
    return path


def test_written_and_read(model: Path) -> None:
    assert frontier.read(ModelFile.read(model)) == (SLOW, FAST)
    assert stored.read_gguf(ModelFile.read(model)) == SLOW.profile
    with_evidence = Point(2.0, 0.0, Profile(1, 0.5, 0.1, 6, 1.0, "dropped", calibration=Calibration(samples=4)))
    assert "calibration" not in frontier.to_gguf([with_evidence])[KEY][1]
    assert frontier.to_gguf([]) == {}


@pytest.mark.parametrize(("speed", "point"), [(1, SLOW), (1.5, SLOW), (1.6, FAST), (4, FAST)])
def test_the_nearest_that_is_fast_enough(model: Path, speed: float, point: Point) -> None:
    assert frontier.choose(ModelFile.read(model), speed) == point.profile


def test_chosen_for_a_model(model: Path) -> None:
    with Model.load(model, profile="4x", n_ctx=1024, n_threads=1) as loaded, loaded.chat() as chat:
        assert loaded.profile == FAST.profile
        chat.answer("what is there", [picture(1)], max_tokens=2)
        assert 0 < chat.stats.n_kept <= 0.1 * chat.stats.n_visual
    with pytest.raises(HalfVError, match=r"model.gguf has no profile that is 4\.5 times faster: the fastest is 4\."):
        Model.load(model, profile="4.5x", n_threads=1)


def test_flag(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(1).save(model.parent / "a.png")
    flags = ["chat", str(model.parent / "a.png"), "-m", str(model), "-p", "what", "--ctx", "1024", "--max-tokens", "2"]
    assert main([*flags, "--speed", "2"]) == 0
    assert main([*flags, "--speed", "9"]) == 2
    assert "no profile that is 9 times faster" in capsys.readouterr().err
    for wrong in (["--speed", "fast"], ["--speed", "2", "--profile", "off"]):
        with pytest.raises(SystemExit) as caught:
            main([*flags, *wrong])
        assert caught.value.code == 2


def test_a_model_without_points(vlms: Vlms) -> None:
    with pytest.raises(HalfVError, match="carries no profiles to choose from by speed: `halfv calibrate --write`"):
        Model.load(vlms.path("qwen2vl"), profile="2x", n_threads=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "Expecting value"),
        ("{}", "is not a list of points"),
        ("[1]", "has 1: a point is speedup, divergence and profile"),
        (json.dumps([{"speedup": "2", "divergence": 0, "profile": {}}]), "numbers of at least 0"),
        (json.dumps([{"speedup": 2, "divergence": 0, "profile": {}}]), "halfv.version is missing"),
        (json.dumps([{"speedup": 2, "divergence": 0, "profile": SLOW.profile.to_json() | {"ivr": {"layer": 9,
         "keep": 0.5, "anchors": 0.1}}}]), "halfv.ivr.layer = 9 is not valid"),
        ("[" * 5000, "model.gguf: "),
    ],
)  # fmt: skip
def test_what_is_not_valid(model: Path, text: str, said: str) -> None:
    replace_keys(ModelFile.read(model).metadata, KEY, {KEY: (STRING, text)}, model, progress=False)
    with pytest.raises(HalfVError, match=r"model\.gguf: ") as caught:
        frontier.read(ModelFile.read(model))
    assert said in str(caught.value)

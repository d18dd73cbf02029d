"""`halfv calibrate` from end to end, on tiny models."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import halfv_cpp
import pytest
from PIL import Image

from halfv_edge.cli.main import main
from halfv_edge.engine.model import Model
from halfv_edge.engine.options import ModelOptions
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.write import replace_keys
from halfv_edge.measure import CalibrationGoal, Progress, find_samples, load_for_calibration, run_calibration
from halfv_edge.measure.calibrate import search
from halfv_edge.measure.calibrate.taps import Probe
from halfv_edge.profile import frontier, model_file, stored
from halfv_edge.profile.values import PREFIX
from tests.support.vlm import Vlms, picture, poisoned

N_LAYER = 6
BOTH = ("--write", "--target-speedup", "2", "--max-divergence", "1")


@pytest.fixture
def place(tmp_path: Path, vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without a profile, its encoder, and a folder of six pictures, all read by relative names."""
    source = vlms.path("qwen2vl")
    metadata = model_file.ModelFile.read(source).metadata
    replace_keys(metadata, PREFIX, {}, tmp_path / "model.gguf", progress=False)
    shutil.copy(source.parent / "mmproj-model.gguf", tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        picture(number, 280, 224).save(tmp_path / "pictures" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "LADDER", (1.25, 1.5))  # the whole ladder takes a minute
    monkeypatch.setattr("halfv_edge.measure.calibrate.run_calibration.INPUTS", (1.0, 0.5))
    return tmp_path


def run(*flags: str, code: int = 0, images: str | None = "pictures") -> None:
    fixed = ["calibrate", "-m", "model.gguf", "--threads", "1", "--ctx", "1024", "--kv-type", "f32"]
    fixed += ["--images", images] if images else []
    assert main([*fixed, *flags]) == code


def results(path: str = "p.calibration") -> list[str]:
    return [json.loads(line)["key"] for line in Path(path).read_text().splitlines()[1:]]


def test_a_profile_and_its_evidence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--target-speedup", "1.5", "-o", "p.json", "--json")
    out, err = capsys.readouterr()
    told = json.loads(out)
    found = stored.read_json(place / "p.json").validate(N_LAYER)
    assert found.prunes(N_LAYER)
    assert told["profile"] == found.to_json()
    assert told["speedup"] >= 1.5
    assert told["n_visual"] == 1024  # the encoder takes any size
    assert told["samples"] == {"used": 6, "frozen": 6, "tried": 6, "held": 0}
    evidence = found.calibration
    assert (evidence.samples, evidence.source) == (6, "pictures")
    assert len(evidence.visual_entropy) == len(evidence.text_entropy) == N_LAYER + 1
    assert len(evidence.layer_kl) == N_LAYER
    assert min(evidence.layer_kl[:-1]) > 1e-4
    assert evidence.layer_kl[-1] < 1e-6
    assert evidence.divergence == pytest.approx(told["divergence"], rel=1e-5)
    closest = min(one["divergence"] for one in told["tried"] if one["speedup"] >= 1.5)
    assert told["divergence"] <= 1.2 * closest  # it gives way only to what is surely nearer
    speeds, losses = zip(*((one["speedup"], one["divergence"]) for one in told["frontier"]), strict=True)
    assert list(speeds) == sorted(speeds) and list(losses) == sorted(losses) and told["speedup"] in speeds
    assert re.search(r"6 samples to observe, about \d+ tokens each: [\d.]+ TFLOPs, about \d+ seconds", err)

    # the model runs with it
    with Model.load("model.gguf", profile=place / "p.json", n_ctx=1024, n_threads=1) as model, model.chat() as chat:
        chat.answer("what is in the picture", [picture(1)], max_tokens=2)
        assert chat.stats.n_kept < chat.stats.n_visual


def test_the_same_again_and_another_target(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--target-speedup", "1.5", "-o", "p.json")
    first = Path("p.json").read_bytes()
    work = Path("p.calibration").read_bytes()
    observed = [key for key in results() if key.startswith("observe")]

    Path("p.calibration").rename("q.calibration")
    run("--target-speedup", "1.5", "-o", "q.json")
    assert Path("q.json").read_bytes() == first
    assert Path("q.calibration").read_bytes() == work  # nothing was run again

    Path("q.calibration").unlink()
    run("--target-speedup", "1.5", "-o", "q.json")  # all of it again, with the same bits
    assert Path("q.json").read_bytes() == first
    assert Path("q.calibration").read_bytes() == work

    capsys.readouterr()
    run("--target-speedup", "1.3", "-o", "q.json")
    out, err = capsys.readouterr()
    assert "results of an earlier run" in err
    assert [key for key in results("q.calibration") if key.startswith("observe")] == observed
    assert float(re.search(r"speed +([\d.]+)x fewer", out)[1]) >= 1.3


def test_pixel_tau_is_part_of_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--target-speedup", "1.5", "--write", "--pixel-tau", "0", "--samples", "4")
    found = stored.read_gguf(model_file.ModelFile.read("model.gguf"))
    assert found.pixel_tau == 0
    assert "is gone" not in capsys.readouterr().err
    run("--target-speedup", "1.5", "--write", "--samples", "4")
    err = capsys.readouterr().err
    assert "its halfv.pixel.tau = 0 is gone" in err
    assert "results of an earlier run" not in err  # the encoder gave other tokens then
    assert stored.read_gguf(model_file.ModelFile.read("model.gguf")).pixel_tau is None


def test_more_samples_of_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only those that are new are observed, and the outcome is that of all at once."""
    run("--target-speedup", "1.5", "-o", "p.json", "--samples", "4")
    n_before = sum(key.startswith("observe") for key in results())
    run("--target-speedup", "1.5", "-o", "p.json")
    assert (n_before, sum(key.startswith("observe") for key in results())) == (4, 6)
    assert "halfv: 2 samples to observe" in capsys.readouterr().err
    run("--target-speedup", "1.5", "-o", "q.json")
    assert Path("p.json").read_bytes() == Path("q.json").read_bytes()


def test_write(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model_file.ModelFile.read("model.gguf").metadata
    run("--max-divergence", "5", "--write", "--samples", "4")
    found = stored.read_gguf(model_file.ModelFile.read("model.gguf"))
    assert found.calibration.samples == 4
    assert found.calibration.divergence <= 5
    after = model_file.ModelFile.read("model.gguf").metadata
    assert after.entries.keys() - before.entries.keys() == {*found.to_gguf(), frontier.KEY}
    assert any(
        replace(found, calibration=None) == point.profile
        for point in frontier.read(model_file.ModelFile.read("model.gguf"))
    )
    assert "wrote the profile into" in capsys.readouterr().err
    Path("link.gguf").symlink_to("model.gguf")
    assert main(["calibrate", "-m", "link.gguf", "--images", "pictures", "--write"]) == 2
    assert "link.gguf is a link: name the file" in capsys.readouterr().err
    # the results still belong to the file
    run("--max-divergence", "5", "-o", "model.json", "--samples", "4")
    assert "results of an earlier run" in capsys.readouterr().err
    assert stored.read_json(place / "model.json") == found


def test_interrupted_and_resumed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    observe, calls = Probe.observe, []

    def third_is_interrupted(self: Probe, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return observe(self, *args, **kwargs)

    monkeypatch.setattr(Probe, "observe", third_is_interrupted)
    run("--target-speedup", "1.5", "-o", "p.json", code=130)
    assert not Path("p.json").exists()
    assert len(results()) == 2
    assert "the same command goes on from there" in capsys.readouterr().err
    run("--target-speedup", "1.5", "-o", "p.json")
    assert len(calls) == 3 + 4
    assert Path("p.json").exists()


def test_progress_comes_to_its_total(place: Path) -> None:
    heard: list[Progress] = []
    with load_for_calibration("model.gguf", options=ModelOptions(n_threads=1, n_ctx=1024)) as model:
        goal = CalibrationGoal(target_speedup=1.5)
        result = run_calibration(model, find_samples(place / "pictures"), goal=goal, progress=heard.append)
    assert result.profile.prunes(N_LAYER) and result.best.speedup >= 1.5
    assert not list(place.glob("*.calibration"))  # nothing was kept, as no file was named
    done = [told.done for told in heard]
    assert done == sorted(done) and done[0] > 0
    assert 0.6 * heard[-1].total < done[-1] < 1.2 * heard[-1].total


def test_mistakes_from_python(place: Path) -> None:
    for fields in ({"target_speedup": 1}, {"max_divergence": 0}, {"target_speedup": 2, "max_divergence": 1}):
        with pytest.raises(HalfVError) as caught:
            CalibrationGoal(**fields)
        assert caught.value.parameter == next(iter(fields))
    samples = find_samples(place / "pictures")
    with (
        Model.load("model.gguf", profile="qwen2-vl-2b", n_threads=1) as model,
        pytest.raises(HalfVError, match="is pruned: load it with load_for_calibration"),
    ):
        run_calibration(model, samples)


def test_generated_pictures_with_a_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--samples", "4", "--target-speedup", "1.5", "-o", "p.json", "--report", "r.html", images=None)
    assert "Pictures like those that you will ask about give a better profile" in capsys.readouterr().err
    assert stored.read_json(place / "p.json").calibration.source == "generated pictures"
    html = Path("r.html").read_text()
    svg = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    kinds = [element.tag.rpartition("}")[2] for element in svg.iter()]
    assert kinds.count("image") == 3
    words = " ".join(element.text or "" for element in svg.iter())
    for word in (
        "Calibration of model.gguf",
        "Matrix entropy",
        "Divergence when one layer",
        "The frontier",
        "Kept",
    ):
        assert word in words
    # every curve, and in each plot the boundaries
    found = stored.read_json(place / "p.json")
    lines = [element for element in svg.iter() if element.tag.endswith("polyline")]
    assert sum(len(line.get("points").split()) == N_LAYER + 1 for line in lines) == 6
    n_boundaries = 1 + (found.ssr_layer < N_LAYER)
    assert sum(line.get("stroke-width") == "1.5" for line in lines) == 4 * n_boundaries

    run("--samples", "4", "--target-speedup", "1.5", "-o", "p.json", "--report", "r.png", images=None)
    with Image.open("r.png") as page:
        width, height = page.size
        assert (width, page.format) == (2080, "PNG")
        colors = {color for _, color in page.convert("RGB").getcolors(1 << 24)}
    assert height > 2000
    assert {(217, 119, 6), (37, 99, 235), (185, 28, 28)} <= colors


def test_unreadable_pictures_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/0.png").write_bytes(b"nothing")
    run("--target-speedup", "1.5", "-o", "p.json", "--json")
    out, err = capsys.readouterr()
    assert "skipped: pictures/0.png is not an image" in err
    assert json.loads(out)["samples"]["used"] == 5
    for number in (1, 2):
        Path(f"pictures/{number}.png").unlink()
    run("-o", "p.json", code=2)
    assert "pictures has 3 usable pictures, and 1 more cannot be read" in capsys.readouterr().err


def test_not_a_number(place: Path, vlms: Vlms, capsys: pytest.CaptureFixture[str]) -> None:
    poisoned(place, vlms).close()
    run("--target-speedup", "1.5", "-o", "p.json", code=2)
    err = capsys.readouterr().err
    assert len(re.findall(r"left out: sample \d \(pictures/\d.png\): there are NaN or infinite values", err)) == 6
    last = err.strip().splitlines()[-1]
    assert last.startswith("halfv: 0 of 6 samples could be used")
    assert "enter layer 4" in last
    assert not Path("p.json").exists()


def test_prompts_too_long_for_the_context(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("-o", "p.json", "--ctx", "256", "--samples", "4", code=2, images=None)
    err = capsys.readouterr().err
    assert err.count("tokens, too many for a context of 256") == 4 + 1
    assert "give a larger --ctx" in err.splitlines()[-1]


def test_an_architecture_that_cannot_be_pruned(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halfv_cpp, "halfv_model_supported", lambda _: False)
    run("-o", "p.json", code=2)
    assert "cannot be calibrated: its architecture cannot be pruned" in capsys.readouterr().err


def test_a_target_out_of_reach(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--target-speedup", "50", "-o", "p.json", code=2)
    closest = re.search(r"cannot become 50 times faster .* closest is ([\d.]+);", capsys.readouterr().err)[1]
    run("--target-speedup", closest, "-o", "p.json")
    run("--max-divergence", "1e-9", "-o", "p.json", code=2)
    closest = re.search(r"closest has ([\d.e-]+) and is", capsys.readouterr().err)[1]
    run("--max-divergence", closest, "-o", "p.json")
    assert stored.read_json(place / "p.json").calibration.divergence <= float(closest)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-o", "p.json", "--samples", "3"), "--samples 3 is too few"),
        (("-o", "p.json", "--target-speedup", "1"), "--target-speedup 1 is not valid"),
        (("-o", "p.json", "--target-speedup", "nan"), "--target-speedup nan is not valid"),
        (("-o", "p.json", "--max-divergence", "0"), "--max-divergence 0 is not valid"),
        (("-o", "p.txt"), "p.txt does not end with .json"),
        (("-o", "pictures"), "pictures is a folder"),
        (("-o", "none/p.json"), "the folder none does not exist"),
        (("-o", "p.json", "--report", "r.pdf"), "r.pdf is neither .html nor .png"),
    ],
)
def test_wrong_flags(flags: tuple[str, ...], words: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*flags, code=2)
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_flags_that_exclude_each_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (
        (),
        ("-o", "p.json", "--keep", "0.5"),
        ("-o", "p.json", "--write"),
        ("--write", "--target-speedup", "2", "--max-divergence", "1"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(*flags)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_switched_off(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HALFV", "off")
    run("-o", "p.json", code=2)
    assert "HALFV=off is set: unset it" in capsys.readouterr().err

"""What `halfv calibrate --encoder-divergence` finds before the language model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfv_edge.cli.main import main
from halfv_edge.engine.options import ModelOptions
from halfv_edge.gguf.write import replace_keys
from halfv_edge.measure import find_samples, load_for_calibration
from halfv_edge.measure.calibrate import search
from halfv_edge.measure.calibrate.intake import LOSSES, IntakeCheck, IntakeRuns, choose, reductions, taking
from halfv_edge.measure.calibrate.taps import Probe
from halfv_edge.measure.work_file import WorkFile
from halfv_edge.profile import model_file, stored
from halfv_edge.profile.profile import WHOLE_INTAKE, Intake, Profile
from halfv_edge.profile.values import PREFIX
from halfv_edge.testing.random_mmproj import write_mmproj
from tests.support.vlm import Vlms

N_ENCODER = 6


def encoder_cost(intake: Intake, n_layer: int) -> float:
    return intake.encoder_layer + (n_layer - intake.encoder_layer) * intake.encoder_keep


class Fake:
    """A model that loses at random, the same on every sample."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.losses: dict[Intake, float] = {}

    def __call__(self, intake: Intake, count: int | None) -> IntakeCheck:
        if intake not in self.losses:
            self.losses[intake] = float(self.rng.uniform(0, 0.1))
        return IntakeCheck(intake, (self.losses[intake],) * (count or 8), int(intake.image_loss > 0.1), 1)


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_that_of_trying_all(seed: int) -> None:
    limit, n_layer, last_cut = 0.03, int(np.random.default_rng(seed).integers(2, 40)), seed % 9
    fake = Fake(seed)
    found = choose(WHOLE_INTAKE, n_layer, last_cut, limit, fake, 8)

    def fits(intake: Intake) -> bool:
        return fake(intake, None).divergence <= limit

    losses = [loss for loss in LOSSES if fits(replace(WHOLE_INTAKE, image_loss=loss))]
    loss = max(losses, default=0.0)
    small = replace(
        WHOLE_INTAKE, image_loss=loss if loss > 0.1 else 0.0
    )  # at 0.1 this model's pictures stay as they are
    cheap = sorted(filter(fits, reductions(small, n_layer, last_cut)), key=lambda one: encoder_cost(one, n_layer))
    assert found.intake == (cheap[0] if cheap else small)
    assert found.divergence <= limit


def test_reductions() -> None:
    assert reductions(WHOLE_INTAKE, 32, 0) == []
    tried = reductions(WHOLE_INTAKE, 32, 31)
    assert {one.encoder_layer for one in tried} == {8, 11, 16, 21}
    costs = [encoder_cost(one, 32) for one in tried]
    assert costs == sorted(costs) and len(set(tried)) == 12
    assert {one.encoder_layer for one in reductions(WHOLE_INTAKE, 27, 8)} == {7, 8}  # Qwen3-VL's DeepStack


def test_what_is_given_is_not_looked_for() -> None:
    given = Intake(image_loss=0.2, encoder_layer=3, encoder_keep=0.5, pixel_tau=0.0)
    fake = Fake(0)
    assert choose(given, 12, 11, 1.0, fake, 8) == IntakeCheck(given)
    assert not fake.losses
    small = replace(WHOLE_INTAKE, image_loss=0.07)
    assert choose(small, 12, 11, 1.0, fake, 8).intake == reductions(small, 12, 11)[0]
    reduced = replace(WHOLE_INTAKE, encoder_layer=5, encoder_keep=0.9)
    assert choose(reduced, 12, 11, 1.0, fake, 8).intake == replace(reduced, image_loss=LOSSES[0])


def test_a_hopeless_one_runs_on_a_quarter() -> None:
    counts = []

    def measure(intake: Intake, count: int | None) -> IntakeCheck:
        counts.append(count)
        return IntakeCheck(intake, (1.0, 1.1))

    assert choose(WHOLE_INTAKE, 12, 11, 0.5, measure, 24) == IntakeCheck(WHOLE_INTAKE)
    assert counts == [6] * (len(LOSSES) + 12)


def test_keys_that_do_nothing_are_not_found() -> None:
    """Pictures that no loss makes smaller, and that are too small for a reduced encoder."""
    assert choose(WHOLE_INTAKE, 12, 11, 0.5, lambda one, _: IntakeCheck(one, (0.0,)), 4) == IntakeCheck(WHOLE_INTAKE)


# --- on a tiny model ---


@pytest.fixture
def place(tmp_path: Path, vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without a profile, an encoder of six layers, and five pictures of blots, which can shrink some."""
    source = vlms.path("qwen2vl")
    replace_keys(model_file.ModelFile.read(source).metadata, PREFIX, {}, tmp_path / "model.gguf", progress=False)
    write_mmproj(tmp_path / "mmproj-model.gguf", "qwen2vl", n_embd=64, n_layer=N_ENCODER)
    (tmp_path / "pictures").mkdir()
    for seed in range(5):
        blots = np.random.default_rng(seed).integers(0, 255, (168, 210, 3), np.uint8)
        image = Image.fromarray(blots).resize((420, 336), Image.Resampling.BICUBIC)
        image.save(tmp_path / "pictures" / f"{seed}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "LADDER", (1.25,))
    monkeypatch.setattr(search, "ROUNDS", 1)
    monkeypatch.setattr("halfv_edge.measure.calibrate.run_calibration.INPUTS", (1.0,))
    return tmp_path


def run(*flags: str, code: int = 0) -> None:
    fixed = ("calibrate", "-m", "model.gguf", "--threads", "1", "--ctx", "1024", "--kv-type", "f32")
    assert main([*fixed, "--images", "pictures", "--target-speedup", "1.25", *flags]) == code


def results(path: str) -> dict[str, Any]:
    lines = map(json.loads, Path(path).read_text().splitlines()[1:])
    return {line["key"]: line["value"] for line in lines}


def test_the_profile_has_the_keys(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--encoder-divergence", "50", "-o", "p.json", "--json", "--report", "r.html")
    out, err = capsys.readouterr()
    told = json.loads(out)
    found = stored.read_json(place / "p.json")
    assert (found.image_loss, found.encoder_layer, found.encoder_keep) == (0.3, 2, 0.35)  # whatever is cheapest
    assert told["intake"]["divergence"] > 0 and told["intake"]["encoder_keep"] == 0.35
    assert "before the language model: halfv.image.loss 0.3, halfv.encoder.layer 2, halfv.encoder.keep 0.35" in err
    assert "Before the language model: halfv.image.loss 0.3" in Path("r.html").read_text()

    # all of the rest is what the same flags give
    run("--image-loss", "0.3", "--encoder-layer", "2", "--encoder-keep", "0.35", "-o", "q.json")
    assert stored.read_json(place / "q.json") == found


def test_results_are_those_of_the_encoder(place: Path) -> None:
    """Those results are of pictures that lost something, and the model has its own encoder again afterwards."""
    run("--encoder-divergence", "50", "-o", "p.json")
    measured = [
        value for key, value in results("p.calibration").items() if key.startswith("intake ") and "0.3 2 " in key
    ]
    assert len(measured) == 5 and all(smaller and reduced for _, smaller, reduced in measured)
    candidate = Intake(image_loss=0.3, encoder_layer=2, encoder_keep=0.35)
    with load_for_calibration("model.gguf", options=ModelOptions(n_threads=1, n_ctx=1024, kv_type="f32")) as model:
        own, samples = model.encoder, find_samples(place / "pictures").samples
        least = IntakeRuns(model, samples, WorkFile(None, {})).find(1e-12)
        assert least.intake == WHOLE_INTAKE
        assert model.encoder is own
        with taking(model, candidate):
            assert model.encoder is not own and model.encoder.intake == candidate
            sizes = [model.encoder.tokens(sample.load()) for sample in samples]
            for size in sizes:
                model.encoder.encode(size)
            half = replace(Profile.default(model.n_layer), input_keep=0.5)
            probe = Probe(model)
            items = probe.items_under(half, samples[0].load(), samples[0].question)  # of the smaller picture
            assert [item.n_tokens for item in items if not isinstance(item, int)] == [sizes[0].chunks[0].n_grid // 2]
            probe.close()
        assert model.encoder is own
        assert all(
            size.chunks[0].n_seen < size.chunks[0].n_groups < own.tokens(sample.load()).n_tokens
            for size, sample in zip(sizes, samples, strict=True)
        )


def test_interrupted_and_resumed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("--encoder-divergence", "50", "-o", "whole.json")
    divergence, calls = Probe.divergence, []

    def eighth_is_interrupted(self: Probe, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return divergence(self, *args, **kwargs)

    monkeypatch.setattr(Probe, "divergence", eighth_is_interrupted)
    run("--encoder-divergence", "50", "-o", "p.json", code=130)
    kept = results("p.calibration")
    assert len(kept) == 7 and all(key.startswith("intake ") for key in kept)
    run("--encoder-divergence", "50", "-o", "p.json")
    assert Path("p.json").read_bytes() == Path("whole.json").read_bytes()
    assert results("p.calibration") == results("whole.calibration")
    assert len(calls) == 8 + len([key for key in results("p.calibration") if not key.startswith("observe")]) - 7

    # once more, and nothing is run
    shutil.copy("p.calibration", "again.calibration")
    n_calls = len(calls)
    run("--encoder-divergence", "50", "-o", "again.json")
    assert len(calls) == n_calls
    assert Path("again.json").read_bytes() == Path("whole.json").read_bytes()


def test_nothing_found_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--encoder-divergence", "1e-12", "-o", "p.json")
    out, err = capsys.readouterr()
    assert "before the language model: nothing found" in err and "the language model nothing found" in out
    run("-o", "q.json")
    assert Path("p.json").read_bytes() == Path("q.json").read_bytes()
    run("--encoder-divergence", "0", "-o", "q.json", code=2)
    assert "--encoder-divergence 0 is not valid" in capsys.readouterr().err

"""Smaller pictures and a reduced encoder in `halfv calibrate`: what is admitted, what it costs, what comes of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfv_edge.cli.main import main
from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.model import Model
from halfv_edge.engine.options import ModelOptions
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.write import replace_keys
from halfv_edge.measure import CalibrationGoal, find_samples, load_for_calibration, run_calibration
from halfv_edge.measure.calibrate import intake, parts, search
from halfv_edge.measure.calibrate.calibrator import Calibrator
from halfv_edge.measure.calibrate.costs import Costs
from halfv_edge.measure.calibrate.encoder_flops import EncoderFlops
from halfv_edge.measure.calibrate.intake import LOSSES, admit, reductions
from halfv_edge.measure.calibrate.search import Check
from halfv_edge.measure.calibrate.taps import OTHERS, Probe
from halfv_edge.profile import frontier, model_file, stored
from halfv_edge.profile.profile import WHOLE_INTAKE, Intake, Profile
from halfv_edge.profile.values import PREFIX
from halfv_edge.testing.random_mmproj import write_mmproj
from tests.support.vlm import Vlms

N_ENCODER = 6
WHOLE = Profile.default(12)


def encoder_cost(one: Profile, n_layer: int) -> float:
    return one.encoder_layer + (n_layer - one.encoder_layer) * one.encoder_keep


class Fake:
    """A model that loses at random, the same on every sample."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.losses: dict[Profile, float] = {}
        self.counts: list[int | None] = []

    def __call__(self, one: Profile, count: int | None) -> Check:
        self.counts.append(count)
        if one not in self.losses:
            self.losses[one] = float(self.rng.uniform(0, 0.1))
        return Check(one, (self.losses[one],) * (count or 8), 1.0, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_all_within_the_limit_are_admitted_ever_cheaper(seed: int) -> None:
    limit, n_layer, last_cut = 0.03, int(np.random.default_rng(seed).integers(2, 40)), seed % 9
    fake = Fake(seed)
    found = admit(WHOLE, n_layer, last_cut, limit, fake, 8)
    assert found.losses == [loss for loss in LOSSES if fake(replace(WHOLE, image_loss=loss), None).divergence <= limit]
    cheap = [one for one in reductions(WHOLE, n_layer, last_cut) if fake(one, None).divergence <= limit]
    assert found.reductions == [(one.encoder_layer, one.encoder_keep) for one in cheap]
    costs = [encoder_cost(one, n_layer) for one in cheap]
    assert costs == sorted(costs, reverse=True)


def test_reductions() -> None:
    assert reductions(WHOLE, 32, 0) == []
    tried = reductions(WHOLE, 32, 31)
    assert {one.encoder_layer for one in tried} == {8, 11, 16, 21} and len(set(tried)) == 12
    assert {one.encoder_layer for one in reductions(WHOLE, 27, 8)} == {7, 8}  # Qwen3-VL's DeepStack


def test_what_is_given_is_not_looked_for() -> None:
    given = replace(WHOLE, image_loss=0.2, encoder_layer=3, encoder_keep=0.5, pixel_tau=0.0)
    fake = Fake(0)
    assert admit(given, 12, 11, 1.0, fake, 8).checks == () and not fake.losses
    assert all(
        check.profile.image_loss == 0.07
        for check in admit(replace(WHOLE, image_loss=0.07), 12, 11, 1.0, fake, 8).checks
    )


def test_a_hopeless_one_runs_on_a_quarter() -> None:
    fake = Fake(0)
    assert admit(WHOLE, 12, 11, 1e-9, fake, 24).checks == ()
    assert fake.counts == [6] * (len(LOSSES) + 12)


def test_keys_that_do_nothing_are_not_admitted() -> None:
    """Pictures that no loss makes smaller, and that are too small for a reduced encoder, diverge by nothing at all."""
    assert admit(WHOLE, 12, 11, 0.5, lambda one, _: Check(one, (0.0,), 1.0, 1.0), 4).checks == ()


def test_flops_of_an_encoder() -> None:
    """Of Qwen2.5-VL-3B at 1,024 tokens, counted by hand: 32 layers of 1280, 3420 in between, four of them see all."""
    matrices = 2.0 * (4 * 1280 * 1280 + 3 * 1280 * 3420)
    merger = 2.0 * (5120 * 5120 + 5120 * 2048)
    patch = 2.0 * 2 * 14 * 14 * 3 * 1280
    full = tuple(float("inf") if layer % 8 == 7 else 64.0 for layer in range(32))
    flops = EncoderFlops((matrices,) * 32, merger + 4 * patch, 1280, 4.0, full)
    n = 4096
    by_hand = 32 * n * matrices + 4 * 4 * 1280 * n * n + 28 * 4 * 1280 * n * 64 + 1024 * merger + n * patch
    assert flops(1024, WHOLE_INTAKE) == pytest.approx(by_hand)
    half = flops(1024, Intake(encoder_layer=16, encoder_keep=0.5))
    assert 0.7 < half / by_hand < 0.75  # half of the layers at half, and less than that of what sees all
    assert flops(512, WHOLE_INTAKE) < 0.5 * by_hand


# --- on a tiny model ---


@pytest.fixture
def place(tmp_path: Path, vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without a profile, an encoder of six layers, and four pictures of blots, which can shrink some."""
    source = vlms.path("qwen2vl")
    replace_keys(model_file.ModelFile.read(source).metadata, PREFIX, {}, tmp_path / "model.gguf", progress=False)
    write_mmproj(tmp_path / "mmproj-model.gguf", "qwen2vl", n_embd=64, n_layer=N_ENCODER)
    (tmp_path / "pictures").mkdir()
    for seed in range(4):
        blots = np.random.default_rng(seed).integers(0, 255, (168, 210, 3), np.uint8)
        image = Image.fromarray(blots).resize((420, 336), Image.Resampling.BICUBIC)
        image.save(tmp_path / "pictures" / f"{seed}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "LADDER", (1.25,))
    monkeypatch.setattr(search, "ROUNDS", 1)
    monkeypatch.setattr("halfv_edge.measure.calibrate.run_calibration.INPUTS", (1.0,))
    monkeypatch.setattr(intake, "LOSSES", (0.15, 0.3))
    monkeypatch.setattr("halfv_edge.measure.calibrate.calibrator.LOSSES", (0.15, 0.3))
    monkeypatch.setattr(intake, "DEPTHS", (1 / 3,))
    monkeypatch.setattr(intake, "SHARES", (0.5, 0.35))
    return tmp_path


def run(*flags: str, code: int = 0) -> None:
    fixed = ("calibrate", "-m", "model.gguf", "--threads", "1", "--ctx", "1024", "--kv-type", "f32")
    assert main([*fixed, "--images", "pictures", *flags]) == code


def results(path: str) -> dict[str, Any]:
    lines = map(json.loads, Path(path).read_text().splitlines()[1:])
    return {line["key"]: line["value"] for line in lines}


def test_points_have_the_keys(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A speed that the language model alone does not give here: the encoder is most of the work."""
    target = ("--target-speedup", "2.2")
    run("--encoder-divergence", "50", *target, "--write", "--json", "--report", "r.html")
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert "before the language model there may be, with its divergence alone: halfv.image.loss 0.15 (" in err
    admitted = [one["profile"] for one in told["admitted"]]
    assert [one["image"]["loss"] for one in admitted[:2]] == [0.15, 0.3]
    assert [one["encoder"] for one in admitted[2:]] == [{"layer": 2, "keep": 0.5}, {"layer": 2, "keep": 0.35}]
    page = Path("r.html").read_text()
    assert "The encoder is counted" in page and re.search(r">(s|e|se) 100%<", page)
    points = frontier.read(model_file.ModelFile.read("model.gguf"))
    assert len(points) > 1 and any(one.profile.image_loss or one.profile.encoder_keep < 1 for one in points)
    fast = min((one for one in points if one.speedup >= 2.2), key=lambda one: one.divergence).profile
    assert fast.image_loss or fast.encoder_keep < 1
    with Model.load("model.gguf", profile="2.2x", n_ctx=1024, n_threads=1) as model:
        assert model.encoder.intake == fast.intake
        with model.chat() as chat:
            chat.answer("what is this", [Image.open("pictures/0.png")], max_tokens=1)
    run(*target, "-o", "q.json", code=0)  # FLOPs of the language model alone
    assert stored.read_json(place / "q.json").intake == replace(
        fast.intake, image_loss=0.0, encoder_layer=1, encoder_keep=1.0
    )
    run("--encoder-divergence", "0", "-o", "q.json", code=2)
    assert "--encoder-divergence 0 is not valid" in capsys.readouterr().err


def test_interrupted_and_resumed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--encoder-divergence", "50", "--target-speedup", "2.2")
    run(*flags, "-o", "whole.json")
    divergence, calls = Probe.divergence, []

    def ninth_is_interrupted(self: Probe, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return divergence(self, *args, **kwargs)

    monkeypatch.setattr(Probe, "divergence", ninth_is_interrupted)
    run(*flags, "-o", "p.json", code=130)
    checks = [key for key in results("p.calibration") if key.startswith("check ")]
    assert len(checks) == 8 and "image_loss" in checks[0]
    run(*flags, "-o", "p.json")
    assert Path("p.json").read_bytes() == Path("whole.json").read_bytes()
    assert results("p.calibration") == results("whole.calibration")
    assert len(calls) == 1 + len([key for key in results("p.calibration") if key.startswith("check ")])


def test_nothing_admitted_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And that what is left to save is then less than any step of the ladder."""
    run("--encoder-divergence", "1e-12", "--max-divergence", "50", "-o", "p.json", code=2)
    err = capsys.readouterr().err
    assert "with its divergence alone: nothing." in err
    closest = re.search(r"cannot become 1.1 times faster .* closest is ([\d.]+);", err)[1]
    run("--encoder-divergence", "1e-12", "--target-speedup", closest, "-o", "p.json")
    out = capsys.readouterr().out
    assert "encoder    tried: nothing" in out and "fewer FLOPs, encoder included," in out


def test_parts_are_tried(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--target-speedup", "1.25", "--try", "channels,heads", "-o", "p.json")
    tried = "".join(results("p.calibration"))
    assert "'ffn_keep': 0.5" in tried and "'heads_keep': 0.5" in tried
    run("--target-speedup", "1.25", "--try", "channel", "-o", "p.json", code=2)
    assert "--try channel is not valid: it must be one of channels" in capsys.readouterr().err


def test_a_part_that_is_refused_is_left_out() -> None:
    """Of a model whose stages begin with layer 4, and of whose heads a half cannot be taken."""
    said: list[str] = []

    def context(one: Profile) -> None:
        assert one.ivr_layer == 4
        if one.heads_keep == 0.5:
            raise HalfVError("heads are one group")

    probe = SimpleNamespace(n_layer=12, fits=lambda one: one.ivr_layer % 4 == 0, context=context)
    calibrator = Calibrator.__new__(Calibrator)
    calibrator.probe, calibrator.say, calibrator.words = probe, said.append, str
    goal = CalibrationGoal(parts=("heads", "channels", "bias"))
    assert calibrator._parts(goal) == [parts.channels, parts.bias]
    assert said == ["heads cannot be tried: heads are one group"]


def test_parts_need_weights_that_are_not_packed(place: Path) -> None:
    goal = CalibrationGoal(parts=("wipe", "channels"))
    with (
        load_for_calibration("model.gguf", options=ModelOptions(n_threads=1, n_ctx=1024)) as model,
        pytest.raises(HalfVError, match="channels cannot be tried with weights that are packed"),
    ):
        run_calibration(model, find_samples(place / "pictures"), goal=goal)


def test_what_a_picture_costs(place: Path) -> None:
    """The same with and without the encoder, and no more encoders in memory than are needed."""
    with load_for_calibration("model.gguf", options=ModelOptions(n_threads=1, n_ctx=1024)) as model:
        probe = Probe(model)
        samples = find_samples(place / "pictures").samples
        kinds = [(None, 0.0), (None, 0.3), (0.0, 0.0)]
        language, both, timed = (
            Costs.of(probe, samples, kinds, 1024, timed=timed, with_encoder=with_encoder)
            for timed, with_encoder in ((False, False), (False, True), (True, False))
        )
        half = replace(Profile.default(model.n_layer), ivr_keep=0.5)
        small, reduced = replace(half, image_loss=0.3), replace(half, encoder_layer=2, encoder_keep=0.5)
        assert language.speedup(replace(half, ivr_keep=1.0)) == both.speedup(replace(half, ivr_keep=1.0)) == 1
        assert 1 < both.speedup(half) < language.speedup(half) == language.speedup(reduced)
        assert both.speedup(half) < both.speedup(reduced) < both.speedup(replace(reduced, encoder_keep=0.35))
        assert language.speedup(small) > language.speedup(half) and both.speedup(small) > both.speedup(half)
        assert timed.speedup(half) > 1 and timed.speedup(reduced) > timed.speedup(half)
        own = probe.runtime.encoder
        assert len(probe._others) <= OTHERS
        sizes = [probe.encoder(small.intake).tokens(sample.load()).chunks[0].n_rows for sample in samples]
        shares = [
            size / own.tokens(sample.load()).chunks[0].n_rows for size, sample in zip(sizes, samples, strict=True)
        ]
        some = probe.items_under(replace(small, input_keep=0.5), samples[0].load(), samples[0].question)
        assert [item.n_tokens for item in some if isinstance(item, Chunk)] == [sizes[0] // 2]  # of the smaller picture
        reduced_chunk = next(
            item for item in probe.items_under(reduced, samples[0].load(), "") if isinstance(item, Chunk)
        )
        assert 0 < reduced_chunk.n_seen < reduced_chunk.n_groups
        assert both.entering[None, 0.3] / both.entering[None, 0.0] == pytest.approx(np.mean(shares), abs=0.05)
        probe.close()

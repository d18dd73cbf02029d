"""The whole calibration: a model loaded for it, results kept on the way, a profile at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import halfv_cpp

from halfv_edge import files
from halfv_edge.engine.model import Model
from halfv_edge.engine.options import ModelOptions
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata
from halfv_edge.measure.calibrate.calibrator import Calibrator, Estimate
from halfv_edge.measure.calibrate.parts import TAKE_PARTS
from halfv_edge.measure.calibrate.results import CalibrationGoal, CalibrationResult
from halfv_edge.measure.calibrate.samples import Samples
from halfv_edge.measure.calibrate.taps import Probe
from halfv_edge.measure.progress import Say, Sentence, Watch, ignore
from halfv_edge.measure.work_file import WorkFile
from halfv_edge.profile import resolve

USUAL_IMAGE_TOKENS = 256  # per picture while calibrating, for encoders that take any size: layers behave alike
DEFAULT_CTX = 4096
INPUTS = (1.0, 0.8, 0.65, 0.55, 0.45, 0.4, 0.35, 0.3, 0.26, 0.23, 0.2, 0.17, 0.15, 0.12, 0.1)
DEFAULT_OPTIONS = ModelOptions()
DEFAULT_GOAL = CalibrationGoal()


def load_for_calibration(
    model: str | os.PathLike[str] | None = None,
    mmproj: str | os.PathLike[str] | None = None,
    *,
    options: ModelOptions = DEFAULT_OPTIONS,
) -> Model:
    """Load a model as it is calibrated: unpruned, with a context and pictures of a size that suffices.

    Args:
        model: As `Model.load` takes it.
        mmproj: The encoder's GGUF; looked for beside the model when not given.
        options: How it runs. Its profile is left out; `n_ctx` and `image_max_tokens` are small when not given.

    Returns:
        The model, for `run_calibration`, to be closed or used in a `with`.
    """
    if resolve.switched_off():
        raise HalfVError(f"HALFV={os.environ['HALFV']} is set: unset it to calibrate.")
    given = options.image_max_tokens
    options = dataclasses.replace(
        options, profile="off", keep=None, n_ctx=options.n_ctx or DEFAULT_CTX,
        image_max_tokens=given or USUAL_IMAGE_TOKENS,
    )  # fmt: skip
    try:
        loaded = Model.load(model, mmproj, options=options)
    except HalfVError as error:
        if given or error.parameter != "image_max_tokens":
            raise
        # this encoder's least is more
        loaded = Model.load(model, mmproj, options=dataclasses.replace(options, image_max_tokens=None))
    if not halfv_cpp.halfv_model_supported(loaded.runtime.pointer):
        loaded.close()
        raise HalfVError(f"{loaded.path} cannot be calibrated: its architecture cannot be pruned.")
    return loaded


def run_calibration(
    model: Model,
    samples: Samples,
    *,
    goal: CalibrationGoal = DEFAULT_GOAL,
    work: Path | None = None,
    progress: Watch = ignore,
    say: Say = ignore,
    words: Sentence = str,
) -> CalibrationResult:
    """Find a model's profile from the model itself; docs/calibration.md has the rules.

    Args:
        model: From `load_for_calibration`.
        samples: Pictures with questions, from `find_samples`.
        goal: How fast, or how close to the unpruned model.
        work: A file that keeps the result of each sample, so that a run that was stopped goes on, and another goal
            does not begin anew; None keeps nothing.
        progress: Hears of the work done, in prompts of an unpruned model.
        say: Hears what a person should know.
        words: How errors of single samples are put.

    Returns:
        The profile, and the curves and candidates that it was read from.

    Raises:
        HalfVError: The goal is out of reach, or too few samples could be used.

    Example:
        with load_for_calibration("model.gguf") as model:
            result = run_calibration(model, find_samples(Path("pictures")))
        print(result.profile)
    """
    if model.profile is not None and model.profile.prunes(model.n_layer):
        raise HalfVError(f"{model.path.name} is pruned: load it with load_for_calibration.")
    if model.runtime.options.repack and (packed := [part for part in goal.parts if part in TAKE_PARTS]):
        raise HalfVError(f"{packed[0]} cannot be tried with weights that are packed: load the model with repack=False.")
    kept = WorkFile(work, _settings(model))
    if kept.results:
        say(f"{work} has {len(kept.results)} results of an earlier run: going on from there.")
    with contextlib.closing(kept), contextlib.closing(Probe(model)) as probe:
        calibrator = Calibrator(
            probe, samples, kept, any_size=model.encoder.is_mrope, taus=_taus(model), inputs=_inputs(model),
            n_encoder_layer=int(read_metadata(model.encoder.path).value("clip.vision.block_count") or 0),
            progress=progress, say=say, words=words,
        )  # fmt: skip
        say(_cost(calibrator.estimate()))
        return calibrator.run(goal)


def _taus(model: Model) -> tuple[float | None, ...]:
    """What to try of patches that repeat: what was asked for, else all of them and none, where the encoder can."""
    asked = model.encoder.intake.pixel_tau
    return (None, 0.0) if asked is None and model.encoder.spares_patches else (asked,)


def _inputs(model: Model) -> tuple[float, ...]:
    """What to try of shares that go on from the encoder: what was asked for, else several."""
    asked = model.encoder.intake.input_keep
    return INPUTS if asked == 1 else (asked,)


def _settings(model: Model) -> dict[str, Any]:
    """What results depend on beside their sample. The GGUF by its tensors, as a profile in it changes its keys."""
    options = model.runtime.options
    return {
        "model": _fingerprint(model.path),
        "mmproj": _fingerprint(model.encoder.path),
        "image_max_tokens": options.image_max_tokens,
        "intake": dataclasses.asdict(model.encoder.intake),
        "kv_type": options.kv_type,
    }


def _fingerprint(path: Path) -> list[Any]:
    metadata = read_metadata(path)
    with files.reading(path) as file:
        file.seek(metadata.data)
        head = file.read(1 << 20)
    return [metadata.text("general.name"), metadata.size - metadata.data, hashlib.blake2b(head).hexdigest()[:32]]


def _cost(estimate: Estimate) -> str:
    return (
        f"{estimate.n_samples} samples to observe, about {estimate.n_prompt} tokens each: "
        f"{estimate.tflops:.3g} TFLOPs, {_duration(estimate.seconds)} on this machine."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    minutes = round(seconds / 60)
    return f"about {minutes} minutes" if minutes < 90 else f"about {seconds / 3600:.1f} hours"

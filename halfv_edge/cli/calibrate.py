"""`halfv calibrate`: finds a model's profile from the model itself."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from halfv_edge import files
from halfv_edge.cli import flags
from halfv_edge.cli.console import Console
from halfv_edge.cli.errors import FLAGS
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import model_file, profile, resolve, stored

if TYPE_CHECKING:
    from halfv_edge.engine.model import Model
    from halfv_edge.measure.calibrate.run import Estimate, Goal, Result

USUAL_IMAGE_TOKENS = 256  # per picture while calibrating, for encoders that take any size: layers behave alike
DEFAULT_CTX = 4096
REPORTS = (".html", ".png")
PRUNING_FLAGS = ("profile", "keep", "exact", "prepare")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Put `calibrate` among the commands."""
    text = "find a model's profile from the model itself"
    command = commands.add_parser(
        "calibrate",
        help=text,
        usage="halfv calibrate -m MODEL.gguf [--images DIR|FILE.jsonl] [options] (-o PROFILE.json | --write)",
        description=f"{text[0].upper()}{text[1:]}. docs/calibration.md explains the rule.",
    )
    flags.add_flags(command)
    for action in command._actions:  # refused in _check, so that a mistake is told and not ignored
        if action.dest in PRUNING_FLAGS:
            action.help = argparse.SUPPRESS
    what = command.add_argument_group("calibration")
    what.add_argument(
        "--images", metavar="DIR|FILE.jsonl", type=Path,
        help='pictures, or lines of {"image": ..., "question": ...}; else generated ones',
    )  # fmt: skip
    what.add_argument("--samples", metavar="N", type=flags.positive, default=100, help="at most (%(default)s)")
    goal = what.add_mutually_exclusive_group()
    goal.add_argument(
        "--target-speedup", metavar="X", type=flags.number, help="FLOPs of a picture, unpruned by pruned (4)"
    )
    goal.add_argument(
        "--max-divergence", metavar="X", type=flags.number, help="KL from the unpruned model, nats per token"
    )
    what.add_argument("--seed", metavar="N", type=flags.integer, default=0, help="of the choice of samples (0)")

    out = command.add_argument_group("output")
    target = out.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", metavar="PROFILE.json", type=Path, help="a profile for --profile or --from")
    target.add_argument("--write", action="store_true", help="into the model's GGUF")
    out.add_argument("--report", metavar="FILE.html|FILE.png", type=Path, help="the curves and how they were read")
    out.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    console = Console()
    _check(args)
    from halfv_edge.measure.calibrate import samples  # here, so that other commands start fast

    gathered, source = samples.gather(
        args.images, args.samples, args.seed, lambda why: console.say(f"halfv: skipped: {why}")
    )
    if args.images is None:
        console.say(
            f"halfv: no --images: {len(gathered)} generated pictures are used. Pictures like those that you will "
            "ask about give a better profile."
        )
    with _load(args, console) as model:
        path = model.path
        result = _run(args, console, model, gathered, source)
    _write(args, console, path, result)  # with the model closed, as its file may be replaced
    print(json.dumps(as_json(result, path), indent=2) if args.json else as_text(result, path))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Before anything slow."""
    from halfv_edge.measure.calibrate.samples import LEAST

    if args.samples < LEAST:
        raise HalfVError(f"--samples {args.samples} is too few: it must be at least {LEAST}.")
    if args.target_speedup is not None and not 1 < args.target_speedup < float("inf"):
        raise HalfVError(f"--target-speedup {args.target_speedup:g} is not valid: it must be above 1.")
    if args.max_divergence is not None and not 0 < args.max_divergence < float("inf"):
        raise HalfVError(f"--max-divergence {args.max_divergence:g} is not valid: it must be above 0.")
    if args.report and args.report.suffix.lower() not in REPORTS:
        raise HalfVError(f"--report {args.report} is neither .html nor .png: name it so.")
    for flag in PRUNING_FLAGS:
        if getattr(args, flag):
            raise HalfVError(f"--{flag} says how a model is pruned, which is what calibrate has to find: leave it out.")
    for path in (args.output, args.report):
        if path and path.is_dir():
            raise HalfVError(f"{path} is a folder: name the file in it.")
        if path and not path.parent.is_dir():
            raise HalfVError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    if args.output and args.output.suffix.lower() != ".json":
        raise HalfVError(f"{args.output} does not end with .json: name the profile {args.output.name}.json.")
    if resolve.switched_off():
        raise HalfVError(f"HALFV={os.environ['HALFV']} is set: unset it to calibrate.")


def _load(args: argparse.Namespace, console: Console) -> Model:
    args.profile = "off"
    args.ctx = args.ctx or DEFAULT_CTX
    given = args.image_max_tokens
    try:
        args.image_max_tokens = given or USUAL_IMAGE_TOKENS
        model = flags.load(args, console)
    except HalfVError as error:
        if given or error.parameter != "image_max_tokens":
            raise
        args.image_max_tokens = None  # this encoder's least is more
        model = flags.load(args, console)
    import halfv_cpp

    if not halfv_cpp.halfv_model_supported(model.runtime.pointer):
        model.close()
        raise HalfVError(f"{model.path} cannot be calibrated: its architecture has no hooks, so it cannot be pruned.")
    if args.write and model.path.is_symlink():
        model.close()
        raise HalfVError(f"{model.path} is a link: name the file {model.path.resolve()}, or give -o PROFILE.json.")
    return model


def _run(args: argparse.Namespace, console: Console, model: Model, gathered: list, source: str) -> Result:
    from halfv_edge.measure.calibrate.run import Calibrator
    from halfv_edge.measure.calibrate.taps import Probe
    from halfv_edge.measure.work_file import WorkFile

    work = WorkFile(_work_path(args, model), _settings(args, model))
    if work.results:
        console.say(f"halfv: {work.path} has {len(work.results)} results of an earlier run: going on from there.")
    probe = Probe(model)
    bar = tqdm(desc="calibrating", unit=" prompts", leave=False, disable=None, bar_format=BAR)
    try:
        calibrator = Calibrator(
            probe, gathered, source, work, any_size=model.encoder.is_mrope, progress=bar.update,
            say=lambda text: console.say(f"halfv: {text}"), words=lambda error: error.sentence(FLAGS),
        )  # fmt: skip
        console.say(f"halfv: {_cost(calibrator.estimate())}")
        bar.total = calibrator.n_units()
        result = calibrator.run(_goal(args))
        bar.close()
        if args.report:
            from halfv_edge.measure.calibrate import report  # here, as most runs want none

            report.write(args.report, result, model, probe, gathered)
            console.say(f"halfv: wrote {args.report}.")
        console.say(f"halfv: kept {work.path} for other targets; delete it when you have what you want.")
    except KeyboardInterrupt:
        bar.close()
        console.say(f"halfv: what is done is kept in {work.path}: the same command goes on from there.")
        raise
    finally:
        bar.close()
        work.close()
        probe.close()
    return result


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def _work_path(args: argparse.Namespace, model: Model) -> Path:
    """Beside what will be written."""
    target = args.output or model.path
    return target.with_name(f"{target.stem}.calibration")


def _settings(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What results depend on beside their sample. The GGUF by its tensors, as --write changes its keys."""
    return {
        "model": _fingerprint(model.path),
        "mmproj": _fingerprint(model.encoder.path),
        "image_max_tokens": args.image_max_tokens,
        "pixel_tau": model.encoder.pixel_tau,
        "kv_type": args.kv_type,
    }


def _fingerprint(path: Path) -> list[Any]:
    import hashlib

    from halfv_edge import files
    from halfv_edge.gguf.read import read_metadata

    metadata = read_metadata(path)
    with files.reading(path) as file:
        file.seek(metadata.data)
        head = file.read(1 << 20)
    return [metadata.text("general.name"), metadata.size - metadata.data, hashlib.blake2b(head).hexdigest()[:32]]


def _goal(args: argparse.Namespace) -> Goal:
    from halfv_edge.measure.calibrate.run import Goal

    if args.max_divergence is not None:
        return Goal(None, args.max_divergence)
    return Goal(4.0 if args.target_speedup is None else args.target_speedup)


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


def _write(args: argparse.Namespace, console: Console, path: Path, result: Result) -> None:
    if args.output:
        text = json.dumps(result.profile.to_json(), indent=2) + "\n"
        files.write(args.output, text.encode())
        console.say(f"halfv: wrote {args.output}.")
        return
    about = model_file.ModelFile.read(path)
    before = resolve.find_profile(about).profile
    replace_keys(about.metadata, profile.PREFIX, result.profile.to_gguf(), path)
    console.say(f"halfv: wrote the profile into {path}.")
    if before and before.pixel_tau is not None and result.profile.pixel_tau is None:
        console.say(f"halfv: its halfv.pixel.tau = {before.pixel_tau:g} is gone; --pixel-tau calibrates with one.")
    sidecar = stored.sidecar_path(path)
    if sidecar.exists():
        console.say(f"halfv: {sidecar} still goes before what is in the file.")


def as_text(result: Result, path: Path) -> str:
    """For people."""
    from halfv_edge.cli.profile import as_text as profile_text

    resolved = resolve.Resolved(result.profile, "gguf")
    told = profile_text(model_file.ModelFile.read(path), resolved).splitlines()
    lines = [line for line in told if "in the file" not in line]
    best = result.best
    lines.append(
        f"speed      {best.speedup:.2f}x fewer FLOPs for a picture of {result.n_visual} tokens, "
        f"{result.text_speedup:.2f}x with a question of 60"
    )
    lines.append(f"answers    {best.agreement:.0%} of the unpruned model's tokens, divergence {best.divergence:.3g}")
    for name, pick in zip(("stage II", "stage III"), result.picks, strict=True):
        lines.append(f"why        {name} from layer {pick.layer}: {pick.reason}")
    lines += [f"why        {note}" for note in result.found.notes]
    if result.skipped:
        lines.append(f"left out   {len(result.skipped)} samples")
    return "\n".join(lines)


def as_json(result: Result, path: Path) -> dict[str, Any]:
    def check(one: Any) -> dict[str, Any]:
        told = {"profile": one.profile.to_json(), "divergence": one.divergence, "agreement": one.agreement}
        return told | {"speedup": one.speedup, "marginal_utility": one.marginal_utility}

    return {
        "model": str(path),
        "profile": result.profile.to_json(),
        "n_visual": result.n_visual,
        "speedup": result.best.speedup,
        "speedup_with_text": result.text_speedup,
        "divergence": result.best.divergence,
        "agreement": result.best.agreement,
        "samples": {"used": result.n_samples, "frozen": result.n_frozen, "tried": result.n_tried},
        "skipped": result.skipped,
        "picks": {name: dataclasses.asdict(pick) for name, pick in zip(("ivr", "ssr"), result.picks, strict=True)},
        "notes": result.found.notes,
        "curves": {
            "visual_entropy": result.curves.visual.tolist(),
            "text_entropy": result.curves.text.tolist(),
            "all_entropy": result.all_entropy.tolist(),
            "attention": result.curves.attention.tolist(),
            "layer_kl": result.curves.layer_kl.tolist(),
        },
        "stage2_candidates": [check(one) for one in result.found.map],
        "stage3_candidates": [check(one) for one in result.found.modes],
    }

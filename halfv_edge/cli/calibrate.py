"""`halfv calibrate`: finds a model's profile from the model itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from halfv_edge import files
from halfv_edge.cli import flags, progress
from halfv_edge.cli.console import Console
from halfv_edge.cli.errors import FLAGS
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import frontier, model_file, resolve, stored
from halfv_edge.profile.profile import QUESTION
from halfv_edge.profile.values import PREFIX

if TYPE_CHECKING:
    from halfv_edge.measure import CalibrationResult
    from halfv_edge.profile.profile import Profile

REPORTS = (".html", ".png")


def add_command(commands: flags.Commands) -> None:
    """Put `calibrate` among the commands."""
    text = "find a model's profile from the model itself"
    command = commands.add_parser(
        "calibrate",
        help=text,
        usage="halfv calibrate -m MODEL.gguf [--images DIR|FILE.jsonl] [options] (-o PROFILE.json | --write)",
        description=f"{text[0].upper()}{text[1:]}. docs/calibration.md explains the rule.",
    )
    flags.add_model(command)
    flags.add_encoder_pruning(command.add_argument_group("pruning"))
    flags.add_running(command)
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
    what.add_argument(
        "--timed", action="store_true",
        help="speedups of the time to the first token here, encoder included, in place of FLOPs",
    )  # fmt: skip
    what.add_argument(
        "--encoder-divergence", metavar="X", type=flags.number,
        help="walk smaller pictures and a reduced encoder too, each within this KL alone, and count the encoder",
    )  # fmt: skip
    what.add_argument(
        "--try", metavar="PART,...", dest="parts", type=flags.words, default=(),
        help="further parts, kept where they help as fast: channels (ordered by `halfv channels`), wipe, heads, bias",
    )  # fmt: skip
    what.add_argument("--seed", metavar="N", type=flags.integer, default=0, help="of the choice of samples (0)")

    out = command.add_argument_group("output")
    target = out.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", metavar="PROFILE.json", type=Path, help="a profile for --profile or --from")
    target.add_argument("--write", action="store_true", help="into the model's GGUF")
    out.add_argument("--report", metavar="FILE.html|FILE.png", type=Path, help="the curves and how they were read")
    out.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_calibrate, profile=None, keep=None)


def _calibrate(args: argparse.Namespace) -> int:
    from halfv_edge import measure  # here, so that other commands start fast
    from halfv_edge.measure.calibrate.parts import TAKE_PARTS

    console = Console()

    def say(text: str) -> None:
        console.say(f"halfv: {text}")

    _check(args)
    goal = measure.CalibrationGoal(
        target_speedup=args.target_speedup,
        max_divergence=args.max_divergence,
        timed=args.timed,
        encoder_divergence=args.encoder_divergence,
        parts=args.parts,
    )
    args.repack = not set(args.parts) & set(TAKE_PARTS)
    samples = measure.find_samples(args.images, n_samples=args.samples, seed=args.seed, say=say)
    if args.images is None:
        say(
            f"no --images: {len(samples)} generated pictures are used. Pictures like those that you will ask about "
            "give a better profile."
        )
    with flags.load(args, console, measure.load_for_calibration) as model:
        path = model.path
        _check_target(args, path)
        work = _work_path(args, path)
        try:
            with progress.shown(console, "prompts", progress.SHARE_ONLY) as show:
                result = measure.run_calibration(
                    model, samples, goal=goal, work=work, progress=show, say=say,
                    words=lambda error: error.sentence(FLAGS),
                )  # fmt: skip
        except KeyboardInterrupt:
            say(f"what is done is kept in {work}: the same command goes on from there.")
            raise
        if args.report:
            measure.calibration_page(args.report, result, model, samples)
            say(f"wrote {args.report}.")
    say(f"kept {work} for other targets; delete it when you have what you want.")
    _write(args, console, path, result)  # with the model closed, as its file may be replaced
    print(json.dumps({"model": str(path), **result.to_json()}, indent=2) if args.json else as_text(result, path))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Before anything slow."""
    if args.report and args.report.suffix.lower() not in REPORTS:
        raise HalfVError(f"--report {args.report} is neither .html nor .png: name it so.")
    for path in (args.output, args.report):
        if path and path.is_dir():
            raise HalfVError(f"{path} is a folder: name the file in it.")
        if path and not path.parent.is_dir():
            raise HalfVError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    if args.output and args.output.suffix.lower() != ".json":
        raise HalfVError(f"{args.output} does not end with .json: name the profile {args.output.name}.json.")


def _check_target(args: argparse.Namespace, path: Path) -> None:
    if args.write and path.is_symlink():
        raise HalfVError(f"{path} is a link: name the file {path.resolve()}, or give -o PROFILE.json.")


def _work_path(args: argparse.Namespace, path: Path) -> Path:
    """Beside what will be written."""
    target: Path = args.output or path
    return target.with_name(f"{target.stem}.calibration")


def _write(args: argparse.Namespace, console: Console, path: Path, result: CalibrationResult) -> None:
    if args.output:
        text = json.dumps(result.profile.to_json(), indent=2) + "\n"
        files.write(args.output, text.encode())
        console.say(f"halfv: wrote {args.output}.")
        return
    about = model_file.ModelFile.read(path)
    before = resolve.find_profile(about).profile
    keys = result.profile.to_gguf() | frontier.to_gguf(result.points)
    replace_keys(about.metadata, PREFIX, keys, path)
    console.say(f"halfv: wrote the profile into {path}.")
    if before and before.pixel_tau is not None and result.profile.pixel_tau is None:
        console.say(f"halfv: its halfv.pixel.tau = {before.pixel_tau:g} is gone; --pixel-tau calibrates with one.")
    sidecar = stored.sidecar_path(path)
    if sidecar.exists():
        console.say(f"halfv: {sidecar} still goes before what is in the file.")


def _shape(profile: Profile, result: CalibrationResult) -> str:
    parts = [f"pictures smaller within a loss of {profile.image_loss:g}"] if profile.image_loss else []
    if profile.encoder_keep < 1:
        parts.append(f"{profile.encoder_keep:.0%} from layer {profile.encoder_layer} of the encoder")
    if profile.input_keep < 1:
        parts.append(f"{profile.input_keep:.0%} enter")
    asked = ", by all of the question" if profile.ivr_query == QUESTION else ""
    parts.append(
        f"{profile.ivr_keep:.1%} from layer {profile.ivr_layer}, {profile.ivr_anchors:.0%} of them anchors{asked}"
    )
    if profile.ssr_layer < result.curves.n_layer:
        parts.append(f"{profile.ssr_update:.0%} updated from {profile.ssr_layer}, the rest {profile.ssr_rest}")
    parts += [f"text alone from {layer}" for layer in profile.further_layers]
    if profile.ivr_bias:
        parts.append(f"{profile.ivr_bias:g} log n on attention to a token that stands for n")
    if profile.ffn_keep < 1:
        parts.append(f"{profile.ffn_keep:.0%} of the channels from {profile.ffn_layer}")
    if profile.heads_keep < 1:
        parts.append(f"{profile.heads_keep:.0%} of the heads from {profile.heads_layer}")
    if profile.pixel_tau is not None:
        parts.append(f"without patches that repeat (tau {profile.pixel_tau:g})")
    return ", ".join(parts)


def as_text(result: CalibrationResult, path: Path) -> str:
    """For people."""
    from halfv_edge.cli.profile import as_text as profile_text

    resolved = resolve.Resolved(result.profile, "gguf")
    about = profile_text(model_file.ModelFile.read(path), resolved).splitlines()
    lines = [line for line in about if "in the file" not in line]
    best = result.best
    counted = "sooner" if result.timed else "fewer FLOPs, encoder included," if result.admitted else "fewer FLOPs"
    lines.append(
        f"speed      {best.speedup:.2f}x {counted} for a picture of "
        f"{result.n_visual} tokens, "
        f"{result.text_speedup:.2f}x with a question of 60"
    )
    lines.append(f"answers    {best.agreement:.0%} of the unpruned model's tokens, divergence {best.divergence:.3g}")
    if result.admitted:
        lines.append(f"encoder    tried: {result.admitted}")
    for name, pick in zip(("stage II", "stage III"), result.picks, strict=True):
        lines.append(f"why        {name} from layer {pick.layer}: {pick.reason}")
    for check in result.found.frontier:
        lines.append(
            f"frontier   {check.speedup:.2f}x: divergence {check.divergence:.3g}, {_shape(check.profile, result)}"
        )
    if result.skipped:
        lines.append(f"left out   {len(result.skipped)} samples")
    return "\n".join(lines)

"""`halfv bench`: how fast, side by side in one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from halfv_edge import files
from halfv_edge.cli import flags, progress
from halfv_edge.cli.console import Console
from halfv_edge.errors import HalfVError
from halfv_edge.hub.find import find_files
from halfv_edge.measure import policies
from halfv_edge.measure.bench import shapes

if TYPE_CHECKING:
    from halfv_edge.measure import RandomModel

ABOUT = """Measures time to first token, decoding speed and memory: a model unpruned, with its profile and with other
policies, in turn in one run. Random weights of a known shape will do, as speed does not depend on them."""


def add_command(commands: flags.Commands) -> None:
    """Put `bench` among the commands."""
    command = commands.add_parser(
        "bench", help="measure speed and memory, unpruned and pruned, in one run", description=ABOUT,
        epilog=f"Policies: {policies.describe()}.",
    )  # fmt: skip
    command.add_argument("images", metavar="IMAGE", nargs="*", help="pictures to measure with (a generated one)")
    command.add_argument("--draw", metavar="photo,page", type=flags.words, default=(), help="in generated ones (photo)")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--follow-up", dest="measurement", action="store_const", const="follow_up", default="prompt",
                      help="prepared pictures and second questions instead")  # fmt: skip
    kind.add_argument("--off", dest="measurement", action="store_const", const="off",
                      help="what the libraries cost while they do not prune; needs --stock-lib")  # fmt: skip

    model = command.add_argument_group("model")
    which = model.add_mutually_exclusive_group()
    which.add_argument("-m", "--model", metavar="MODEL", help="a GGUF, or a name from `halfv chat --list-models`")
    which.add_argument("--hf", metavar="OWNER/REPO[:QUANT]", help="a Hugging Face repository")
    which.add_argument("--shape", choices=shapes.SHAPES, help="random weights of this shape, written once")
    model.add_argument("--mmproj", metavar="FILE", help="the vision encoder; else looked for beside the model")
    model.add_argument("--no-encoder", action="store_true", help="the language model alone")
    model.add_argument("--arch", choices=shapes.ARCHS, help="of --shape: another architecture of the same sizes")
    model.add_argument("--ftype", choices=("q4_0", "q8_0", "f16"), default="q4_0", help="of --shape (%(default)s)")
    model.add_argument(
        "--tokens",
        metavar="N,N",
        type=_whole_numbers,
        default=(),
        help="of --shape: of generated pictures",
    )
    model.add_argument("--models", metavar="DIR", type=Path, help="of --shape: where the files go")

    pruning = command.add_argument_group("pruning")
    pruning.add_argument("--profile", metavar="FILE|PRESET", help="in place of what comes with the model")
    pruning.add_argument("--keep", metavar="SHARE,SHARE", type=_numbers, default=(), help="the profile so as well")
    pruning.add_argument("--policy", metavar="NAME,NAME", type=flags.words, default=(), help="and these, listed below")

    running = command.add_argument_group("running")
    running.add_argument("--stock-lib", metavar="DIR", type=Path, help="compare with these unpatched libraries")
    running.add_argument("--repeats", metavar="N", type=flags.positive, default=5, help="(%(default)s)")
    running.add_argument("--warm-up", metavar="N", type=flags.count, default=1, help="rounds not counted (%(default)s)")
    running.add_argument("--decode", metavar="N", type=flags.positive, default=32, help="tokens (%(default)s)")
    running.add_argument("--gpu-layers", metavar="N", type=flags.integer, default=-1, help="layers on the GPU (all)")
    running.add_argument("--threads", metavar="N", type=flags.positive, help="on the CPU (one per core)")
    running.add_argument("--batch", metavar="N", type=flags.positive, default=2048, help="(%(default)s)")
    running.add_argument("--ubatch", metavar="N", type=flags.positive, default=512, help="(%(default)s)")
    running.add_argument("--mmproj-type", metavar="TYPE", default="auto", help="of the encoder in memory (%(default)s)")
    running.add_argument("--kv-type", metavar="TYPE", default="f16", help="of the KV cache (%(default)s)")

    command.add_argument("--json", action="store_true", help="print everything that was measured")
    command.add_argument("--plot", metavar="OUT.png", type=Path, help="draw it as well")
    command.set_defaults(run=_bench)


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(flags.positive(part) for part in flags.words(text))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(flags.number(part) for part in flags.words(text))


def _bench(args: argparse.Namespace) -> int:
    from halfv_edge.measure import BenchOptions, bench_plot, bench_table, run_bench  # here, as other commands need none

    console = Console()
    _check(args)
    options = BenchOptions(
        measurement=args.measurement,
        profile=flags.profile(args.profile),
        keep=args.keep,
        policies=args.policy,
        draw=args.draw,
        stock_lib=args.stock_lib,
        repeats=args.repeats,
        warm_up=args.warm_up,
        n_decode=args.decode,
        n_gpu_layers=args.gpu_layers,
        n_threads=args.threads,
        n_batch=args.batch,
        n_ubatch=args.ubatch,
        kv_type=args.kv_type,
        mmproj_type=args.mmproj_type.lower(),
    )
    model, mmproj = _model(args)
    with progress.shown(console, "request") as show:
        report = run_bench(model, args.images, mmproj=mmproj, options=options, progress=show, say=console.say)
    if args.plot:
        files.write(args.plot, bench_plot(report))
        console.say(f"halfv: wrote {args.plot}.")
    print(json.dumps(report.to_json(), indent=2) if args.json else bench_table(report))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.plot and args.measurement != "prompt":
        raise HalfVError(f"--plot {args.plot} draws the time of a prompt: leave out --follow-up and --off.")
    if args.plot and args.plot.suffix.lower() != ".png":
        raise HalfVError(f"--plot {args.plot} is not valid: its name must end in .png.")
    for flag, value in (("--tokens", args.tokens), ("--arch", args.arch), ("--no-encoder", args.no_encoder)):
        if value and not args.shape:
            raise HalfVError(f"{flag} goes with --shape: a model's own pictures come from its own encoder.")


def _model(args: argparse.Namespace) -> tuple[Path | RandomModel | None, Path | None]:
    """The model, and its encoder where that is a file of its own."""
    from halfv_edge.measure import RandomModel

    if not args.shape:
        found = find_files(args.model, args.hf, args.mmproj)
        return found.model, found.mmproj
    return RandomModel(
        shape=args.shape,
        arch=args.arch,
        ftype=args.ftype,
        tokens=args.tokens,
        no_encoder=args.no_encoder,
        folder=args.models,
    ), None

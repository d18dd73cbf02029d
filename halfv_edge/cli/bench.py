"""`halfv bench`: how fast, side by side in one run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfv_cpp import library
from halfv_cpp.machine import n_cores

from halfv_edge.cli import flags
from halfv_edge.cli.console import Console
from halfv_edge.errors import HalfVError
from halfv_edge.gguf import write as gguf_write
from halfv_edge.hub import find as hub_find
from halfv_edge.measure import policies
from halfv_edge.measure.bench import machine, shapes
from halfv_edge.profile import model_file, profile

if TYPE_CHECKING:
    from halfv_edge.measure.bench.run import Bench, Contender, Subject

ABOUT = """Measures time to first token, decoding speed and memory: a model unpruned, with its profile and with other
policies, in turn in one run. Random weights of a known shape will do, as speed does not depend on them."""
SQUARE = (896, 896)  # pixels of the generated picture for a model that was given without one


def add_command(commands: argparse._SubParsersAction) -> None:
    """Put `bench` among the commands."""
    command = commands.add_parser(
        "bench", help="measure speed and memory, unpruned and pruned, in one run", description=ABOUT,
        epilog=f"Policies: {policies.describe()}.",
    )  # fmt: skip
    command.add_argument("images", metavar="IMAGE", nargs="*", help="pictures to measure with (a generated one)")
    command.add_argument("--draw", choices=("photo", "page", "photo,page"), help="what generated pictures show (photo)")
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
        "--tokens", metavar="N,N", type=_whole_list, help="of --shape: visual tokens of the generated pictures"
    )
    model.add_argument("--models", metavar="DIR", type=Path, default=None, help="of --shape: where the files go")

    pruning = command.add_argument_group("pruning")
    pruning.add_argument("--profile", metavar="FILE|PRESET", help="in place of what comes with the model")
    pruning.add_argument("--keep", metavar="SHARE,SHARE", default="", help="the profile with these shares as well")
    pruning.add_argument("--policy", metavar="NAME,NAME", default="", help="and these policies, listed below")

    running = command.add_argument_group("running")
    running.add_argument("--stock-lib", metavar="DIR", type=Path, help="compare with these unpatched libraries")
    running.add_argument("--repeats", metavar="N", type=flags.positive, default=5, help="(%(default)s)")
    running.add_argument("--warm-up", metavar="N", type=flags.count, default=1, help="rounds not counted (%(default)s)")
    running.add_argument("--decode", metavar="N", type=flags.positive, default=32, help="tokens (%(default)s)")
    running.add_argument("--gpu-layers", metavar="N", type=flags.integer, default=0, help="(%(default)s)")
    running.add_argument("--threads", metavar="N", type=flags.positive, help="on the CPU (one per core)")
    running.add_argument("--batch", metavar="N", type=flags.positive, default=2048, help="(%(default)s)")
    running.add_argument("--ubatch", metavar="N", type=flags.positive, default=512, help="(%(default)s)")
    running.add_argument("--mmproj-type", metavar="TYPE", default="auto", help="of the encoder in memory (%(default)s)")
    running.add_argument("--kv-type", choices=("f16", "q8_0", "q4_0"), default="f16", help="(%(default)s)")

    command.add_argument("--json", action="store_true", help="print everything that was measured")
    command.add_argument("--plot", metavar="OUT.png", type=Path, help="draw it as well")
    command.set_defaults(run=_bench)


def _whole_list(text: str) -> list[int]:
    return [flags.positive(part) for part in text.split(",")]


def _bench(args: argparse.Namespace) -> int:
    from halfv_edge.measure.bench import report  # here, as it needs Pillow

    console = Console()
    _check(args)
    subject, own = _subject(args, console)
    found = _measure(args, subject, policies.Given(subject.n_layer, own))
    if args.plot:
        image = report.as_png(found)
        with gguf_write.writing(args.plot, len(image)) as out:
            out.write(image)
        console.say(f"halfv: wrote {args.plot}.")
    print(json.dumps(found, indent=2) if args.json else report.as_table(found))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.measurement == "off" and not args.stock_lib:
        raise HalfVError("--off compares with an unpatched llama.cpp: name the folder of its libraries, --stock-lib.")
    if args.plot and args.measurement != "prompt":
        raise HalfVError(f"--plot {args.plot} draws the time of a prompt: leave out --follow-up and --off.")
    if args.plot and args.plot.suffix.lower() != ".png":
        raise HalfVError(f"--plot {args.plot} is not valid: its name must end in .png.")
    if not args.shape:
        for flag, value in (("--tokens", args.tokens), ("--arch", args.arch), ("--no-encoder", args.no_encoder)):
            if value:
                raise HalfVError(f"{flag} goes with --shape: a model's own pictures come from its own encoder.")
    if args.images:
        for flag, value in (("--tokens", args.tokens), ("--no-encoder", args.no_encoder), ("--draw", args.draw)):
            if value:
                raise HalfVError(f"{args.images[0]} cannot be used with {flag}, for generated pictures: leave one out.")
    if args.no_encoder and args.draw:
        raise HalfVError(f"--draw {args.draw} needs the encoder: leave out --no-encoder.")


def _subject(args: argparse.Namespace, console: Console) -> tuple[Subject, profile.Profile | None]:
    """What to measure, and the profile it comes with."""
    from halfv_edge.engine.encoder import find
    from halfv_edge.engine.runtime import resolve_profile
    from halfv_edge.measure.bench.run import Picture, Subject

    flags.read_images(args.images)
    pictures = [Picture(Path(image).name, str(Path(image).resolve())) for image in args.images]
    if not args.shape:
        files = hub_find.find(args.model, args.hf, args.mmproj)
        about = model_file.ModelFile.read(files.model)
        sizes = [(None, SQUARE)]
        mmproj = find(files.mmproj, about)
        name = files.model.name
    else:
        shape = shapes.SHAPES[args.shape]
        shape = dataclasses.replace(shape, arch=args.arch) if args.arch else shape
        counts = args.tokens or shape.tokens
        if not args.no_encoder and not shape.vision.pixels_per_token and tuple(counts) != shape.tokens:
            raise HalfVError(
                f"--tokens {counts[0]} does not fit: the encoder of {args.shape} always gives {shape.tokens[0]}; "
                "use --no-encoder for other numbers."
            )
        folder = args.models or files.cache_folder() / "shapes"
        console.status(f"looking for {args.shape} in {folder}, or writing it ...")
        about = model_file.ModelFile.read(shapes.model_file(args.shape, shape, args.ftype, folder))
        mmproj = None if args.no_encoder else shapes.mmproj_file(args.shape, shape, folder)
        console.clear_status()
        sizes = [(count, shape.vision.size(count)) for count in counts]
        name = args.shape
    pictures = pictures or [
        Picture(
            f"{drawing} {size[0]}x{size[1]}" if mmproj else f"{count} tokens",
            drawing=drawing,
            size=size,
            n_visual=count,
        )
        for count, size in sizes
        for drawing in (args.draw or "photo").split(",")
    ]
    own = resolve_profile(about, flags._profile(args.profile), None).profile
    return Subject(name, about.architecture, about.n_layer, about.path, mmproj, pictures), own


def _measure(args: argparse.Namespace, subject: Subject, given: policies.Given) -> dict[str, Any]:
    from tqdm import tqdm

    from halfv_edge.measure.bench.run import Bench

    options = {
        "n_batch": args.batch,
        "n_ubatch": args.ubatch,
        "n_threads": args.threads or n_cores(),
        "n_gpu_layers": args.gpu_layers,
        "kv_type": args.kv_type,
        "mmproj_type": args.mmproj_type.lower(),
    }
    machine.warn_when_busy()
    with (
        Bench(subject, options, library.lib_dir(), args.stock_lib, args.repeats, args.warm_up, args.decode) as bench,
        tqdm(unit="request", disable=None, leave=False) as bar,
    ):
        bench.enter(_contenders(args, bench, given))
        bar.reset(bench.n_requests())

        def tick(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        bench.tick = tick
        libraries = bench.about()
        rows = []
        for at in range(bench.n_pictures):
            found = getattr(bench, args.measurement)(at)
            if args.measurement == "prompt" and at == bench.n_pictures - 1:
                bench.add_memory(found)
            rows += [{"picture": subject.pictures[at].name} | row for row in found]
    return {
        "measurement": args.measurement,
        "subject": subject.name,
        "arch": subject.arch,
        "weights": f"random, {args.ftype}" if args.shape else "as given",
        "encoder": subject.mmproj is not None,
        "profile": given.profile.to_json() if given.profile else None,
        "commit": machine.commit(),
        "machine": machine.describe() | {"devices": libraries["halfv"]["devices"]},
        "libraries": libraries,
        "repeats": args.repeats,
        "n_decode": args.decode,
        **options,
        "rows": rows,
    }


def _contenders(args: argparse.Namespace, bench: Bench, given: policies.Given) -> list[Contender]:
    """The first one is what the others are compared with."""
    from halfv_edge.measure.bench import run

    stock = [run.Contender(policies.STOCK, bench.stock)] if bench.stock else []
    own = policies.one("profile", given)
    if args.measurement == "off":
        return [*stock, run.Contender(run.OFF, bench.halfv), run.Contender(run.SWITCHED_OFF, bench.halfv, own, True)]
    unpruned = run.Contender(policies.UNPRUNED, bench.halfv)
    if args.measurement == "follow_up":
        base = stock or [unpruned]
        return [*base, *(run.Contender(name, bench.halfv, own) for name in ("exact", "prepared, topped up"))]
    if bench.subject.mmproj:  # the encoder's gain apart from that of pruning
        base = [*(stock or [run.Contender(policies.STOCK, bench.halfv, policies.one(policies.STOCK, given))]), unpruned]
    else:
        base = stock or [unpruned]
    wanted = ["profile", *(f"keep:{part.strip()}" for part in args.keep.split(",") if part.strip())]
    wanted += [part for part in args.policy.split(",") if part.strip()]
    names = [one.name for one in base]
    listed = [one for one in policies.parse(",".join(wanted), given) if one.name not in names]
    if any(policy.prepared for policy in listed):
        raise HalfVError("The policy prepared is measured by --follow-up: leave it out of --policy.")
    return [*base, *(run.Contender(policy.name, bench.halfv, policy) for policy in listed)]

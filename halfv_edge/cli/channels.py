"""`halfv channels`: puts those channels of a model first that pictures use most."""

from __future__ import annotations

import argparse
from pathlib import Path

from halfv_edge.cli import flags, progress
from halfv_edge.cli.console import Console
from halfv_edge.errors import HalfVError
from halfv_edge.profile import model_file


def add_command(commands: flags.Commands) -> None:
    """Put `channels` among the commands."""
    text = "order a model's feed-forward channels and heads by how much pictures use them"
    command = commands.add_parser(
        "channels",
        help=text,
        usage="halfv channels -m MODEL.gguf [--images DIR|FILE.jsonl] -o OUT.gguf",
        description=f"{text[0].upper()}{text[1:]}. It computes the same as before, up to rounding; with halfv.ffn.keep "
        "or halfv.heads.keep below 1 visual tokens then do without what says least. docs/other-systems.md.",
    )
    flags.add_model(command)
    flags.add_running(command)
    command.add_argument("--images", metavar="DIR|FILE.jsonl", type=Path, help="pictures like those to come")
    command.add_argument("--samples", metavar="N", type=flags.positive, default=40, help="at most (%(default)s)")
    command.add_argument("-o", "--output", metavar="OUT.gguf", type=Path, required=True, help="the new file")
    command.set_defaults(run=_channels, **dict.fromkeys(flags.PRUNING))


def _channels(args: argparse.Namespace) -> int:
    from halfv_edge.gguf import channels as file  # here, as numpy and the libraries take their time
    from halfv_edge.measure.calibrate.channels import channel_use
    from halfv_edge.measure.calibrate.run_calibration import load_for_calibration
    from halfv_edge.measure.calibrate.samples import find_samples

    console = Console()

    def say(text: str) -> None:
        console.say(f"halfv: {text}")

    samples = find_samples(args.images, n_samples=args.samples, seed=0, say=say)
    args.gpu_layers = 0  # states are read where they are computed
    with flags.load(args, console, load_for_calibration) as model:
        about = model_file.ModelFile.read(model.path)
        if args.output.resolve() == model.path.resolve():
            raise HalfVError(f"{args.output} is the model itself: give another file.")
        networks = file.networks(about.metadata)
        with progress.shown(console, "pictures", progress.SHARE_ONLY) as show:
            heard = channel_use(model, samples, progress=show)

    def ordered(parts: dict[int, file.Parts], said: dict[int, file.Use], matrix: str) -> dict[int, file.Order]:
        uses = file.uses_of(said, about.metadata, matrix)
        return {layer: file.by_use(use, parts[layer]) for layer, use in uses.items() if layer in parts}

    orders = ordered(networks, heard.channels, "ffn_down")
    heads = ordered(file.head_groups(about.metadata), heard.heads, "attn_output")
    if not orders:
        raise HalfVError(f"{about.path} has no feed-forward network whose channels can change places.")
    file.reorder(about.metadata, orders, args.output, heads=heads)
    say(
        f"wrote {args.output}, with the channels of {len(orders)} layers and the heads of {len(heads)} in the order of "
        f"{len(samples)} pictures."
    )
    return 0

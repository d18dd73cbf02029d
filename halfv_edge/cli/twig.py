"""`halfv twig`: TwigVLM's twig for a model, as a GGUF of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from halfv_edge.cli import flags


def add_command(commands: flags.Commands) -> None:
    """Put `twig` among the commands."""
    text = "make a GGUF of a twig, which chooses visual tokens or drafts the answers of the model that it grew on"
    command = commands.add_parser(
        "twig",
        help=text,
        usage="halfv twig MODEL.gguf (--weights FILE.safetensors | --untrained LAYERS) -o OUT.gguf",
        description=f"{text[0].upper()}{text[1:]}, as TwigVLM has it. docs/other-systems.md.",
    )
    command.add_argument("model", metavar="MODEL.gguf", type=Path, help="the language model that it grew on")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--weights", metavar="FILE.safetensors", type=Path, help="a trained one, as TwigVLM publishes it, or its folder"
    )
    which.add_argument(
        "--untrained",
        metavar="LAYERS",
        type=flags.positive,
        help="what training begins with: as many layers of the model itself (TwigVLM: 3)",
    )
    command.add_argument(
        "--after", metavar="K", type=flags.positive, default=2, help="layers of the model before it (%(default)s)"
    )
    command.add_argument("-o", "--output", metavar="OUT.gguf", type=Path, required=True, help="the new file")
    command.set_defaults(run=_twig)


def _twig(args: argparse.Namespace) -> None:
    from halfv_convert import convert_twig, untrained_twig

    if args.weights:
        shape = convert_twig(args.model, args.weights, args.output, after=args.after)
    else:
        shape = untrained_twig(args.model, args.output, after=args.after, layers=args.untrained)
    kind = "trained" if args.weights else "untrained"
    print(
        f"halfv: wrote {args.output} ({args.output.stat().st_size / 1e6:,.1f} MB): {shape.layers} {kind} layers behind "
        f"the first {shape.after} of {args.model.name}.",
        file=sys.stderr,
    )

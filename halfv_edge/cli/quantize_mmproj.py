"""`halfv quantize-mmproj`: a vision encoder's GGUF in another type."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from halfv_edge.cli import flags
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata


def add_command(commands: flags.Commands) -> None:
    """Put `quantize-mmproj` among the commands."""
    text = "write a vision encoder (mmproj) in another type"
    command = commands.add_parser("quantize-mmproj", help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("file", metavar="IN.gguf", type=Path, help="an mmproj in f32, f16 or bf16")
    command.add_argument("output", metavar="OUT.gguf", type=Path)
    command.add_argument(
        "--type",
        default="bf16",
        help="of its matrices: f32, f16, bf16, q8_0, q6_k, ... (%(default)s)",
    )
    command.add_argument("--force", action="store_true", help="replace OUT.gguf when it is there")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_quantize)


def _quantize(args: argparse.Namespace) -> None:
    from halfv_edge.gguf import mmproj as mmproj_file  # here, as it loads the libraries

    if args.output.exists() and not args.force:
        raise HalfVError(f"{args.output} is there already: give another name, or --force to replace it.")
    source = read_metadata(args.file)
    changed = mmproj_file.retype(source, args.output, args.type.lower())
    sizes = args.file.stat().st_size, args.output.stat().st_size
    if args.json:
        print(json.dumps({"output": str(args.output), "changed": changed, "bytes_before": sizes[0], "bytes": sizes[1]}))
    print(
        f"halfv: wrote {args.output}: {changed} matrices in {args.type.lower()}, "
        f"{sizes[0] / 1e6:,.1f} -> {sizes[1] / 1e6:,.1f} MB.",
        file=sys.stderr,
    )

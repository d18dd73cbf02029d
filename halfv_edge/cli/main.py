"""The `halfv` command, also `python -m halfv_edge`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from halfv_cpp import LibraryError

from halfv_edge import __version__
from halfv_edge.cli import bench as cli_bench
from halfv_edge.cli import calibrate as cli_calibrate
from halfv_edge.cli import chat as cli_chat
from halfv_edge.cli import convert as cli_convert
from halfv_edge.cli import errors, info
from halfv_edge.cli import eval as cli_eval
from halfv_edge.cli import profile as cli_profile
from halfv_edge.cli import quantize_mmproj as cli_quantize
from halfv_edge.cli import tokens as cli_tokens
from halfv_edge.errors import HalfVError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a foreseen mistake is one sentence on stderr and the exit code of its kind."""
    args = _parser().parse_args(argv)
    code = 0
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away, as in `halfv info | head -1`; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (HalfVError, LibraryError, KeyboardInterrupt) as error:
        print(errors.in_words(error), file=sys.stderr)
        return errors.exit_code(error)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = errors.Parser(prog="halfv", description="Visual token pruning for llama.cpp.", epilog=errors.CODES)
    parser.add_argument("--version", action="version", version=f"halfv-edge {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("info", help="say what is installed: versions, libraries, backends, devices")
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_info)

    cli_chat.add_command(commands)
    cli_tokens.add_command(commands)
    cli_profile.add_command(commands)
    cli_convert.add_command(commands)
    cli_quantize.add_command(commands)
    cli_bench.add_command(commands)
    cli_eval.add_command(commands)
    cli_calibrate.add_command(commands)
    return parser


def _info(args: argparse.Namespace) -> None:
    found = info.collect()
    print(json.dumps(found, indent=2) if args.json else info.as_text(found))

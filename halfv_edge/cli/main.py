"""The `halfv` command, also `python -m halfv_edge`."""

from __future__ import annotations

import _thread
import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence

from halfv_cpp import LibraryError

from halfv_edge import __version__
from halfv_edge.cli import (
    bench,
    calibrate,
    channels,
    chat,
    convert,
    doctor,
    errors,
    eval,
    info,
    profile,
    quantize_mmproj,
    run_program,
    serve,
    tokens,
    twig,
)
from halfv_edge.errors import HalfVError

# as --help lists them
COMMANDS = (
    chat,
    serve,
    run_program,
    tokens,
    profile,
    convert,
    quantize_mmproj,
    bench,
    eval,
    calibrate,
    channels,
    twig,
    doctor,
)
FOR_PROGRAMS = {module.NAME: module.split for module in (serve, run_program)}  # whose other flags are a program's

AGAIN_SEC = 0.05  # by then the callback is over


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a foreseen mistake is one sentence on stderr and the exit code of its kind."""
    words = list(sys.argv[1:] if argv is None else argv)
    rest: list[str] = []
    if words and words[0] in FOR_PROGRAMS:
        words[1:], rest = FOR_PROGRAMS[words[0]](words[1:])
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for good
    args, unknown = _parser().parse_known_args(words)
    if unknown:
        errors.Parser(prog=f"halfv {words[0]}").error(f"unrecognized arguments: {' '.join(unknown)}")
    args.rest = rest
    code = 0
    sys.unraisablehook = _again_if_interrupted
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


def _again_if_interrupted(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that arrives while native code computes is raised where that calls Python back, and lost: so once more."""
    if lost.exc_type is not None and issubclass(lost.exc_type, KeyboardInterrupt):
        later = threading.Timer(AGAIN_SEC, _thread.interrupt_main)
        later.daemon = True
        later.start()
    else:
        sys.__unraisablehook__(lost)


def _parser() -> argparse.ArgumentParser:
    parser = errors.Parser(prog="halfv", description="Visual token pruning for llama.cpp.", epilog=errors.CODES)
    parser.add_argument("--version", action="version", version=f"halfv-edge {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("info", help="say what is installed: versions, libraries, backends, devices")
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_info)

    for command_module in COMMANDS:
        command_module.add_command(commands)
    return parser


def _info(args: argparse.Namespace) -> None:
    found = info.collect()
    print(json.dumps(found, indent=2) if args.json else info.as_text(found))

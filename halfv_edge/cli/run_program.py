"""`halfv run`: any program that uses llama.cpp, with our libraries in place of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from halfv_edge.cli import flags
from halfv_edge.cli.errors import CODES
from halfv_edge.cli.serve import start
from halfv_edge.errors import HalfVError
from halfv_edge.profile import presets, stored

NAME = "run"
EPILOG = (
    "The program must be of the llama.cpp that `halfv info` names: `halfv run --profile model.halfv.json -- "
    f"llama-mtmd-cli -m model.gguf ...`. {CODES}"
)


def add_command(commands: flags.Commands) -> None:
    """Put `run` among the commands."""
    text = "start a program that uses llama.cpp with our libraries"
    command = commands.add_parser(NAME, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EPILOG)
    command.add_argument(
        "--profile", metavar="FILE|PRESET|off", help="of its models, in place of what their files carry"
    )
    command.set_defaults(run=_run, rest=[])


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our flags, and the program with its own: after --."""
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _run(args: argparse.Namespace) -> int:
    from halfv_edge.server import loader

    if not args.rest:
        raise HalfVError("halfv run needs a program after --: halfv run -- llama-mtmd-cli -m model.gguf.")
    program = shutil.which(args.rest[0])
    if program is None:
        raise HalfVError(f"{args.rest[0]} is not a program that can be started: check the name and the folder.")
    env = loader.environment(os.environ)
    env |= _profile(args.profile)
    taken = loader.libllama_of(Path(program), env)
    if taken is not None and not loader.is_ours(taken):
        raise HalfVError(
            f"{args.rest[0]} takes libllama from {taken}, as a path in the program comes before the environment: "
            "remove it with `patchelf --remove-rpath`."
        )
    try:
        return start([program, *args.rest[1:]], env)
    except OSError as error:
        raise HalfVError(f"{args.rest[0]} cannot be started: {error.strerror}.") from error


def _profile(given: str | None) -> dict[str, str]:
    if given is None:
        return {}
    if given == "off":
        return {"HALFV": "off"}
    profile = presets.get(given).profile if given.lower() in presets.PRESETS else stored.read_json(Path(given))
    if "HALFV" in os.environ:
        print(f"halfv: HALFV={os.environ['HALFV']} is set in the environment.", file=sys.stderr)
    return {"HALFV_PROFILE": json.dumps(profile.to_json(), separators=(",", ":"))}

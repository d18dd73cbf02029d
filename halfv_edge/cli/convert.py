"""`halfv convert`: a Hugging Face checkpoint to GGUF."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from halfv_edge.cli import flags
from halfv_edge.profile import presets, stored
from halfv_edge.profile.profile import Profile


def add_command(commands: flags.Commands) -> None:
    """Put `convert` among the commands."""
    text = "convert a Hugging Face checkpoint of a vision-language model to GGUF, with a profile"
    command = commands.add_parser("convert", help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("folder", metavar="FOLDER", type=Path, help="config.json, weights and tokenizer")
    command.add_argument("-o", "--output", metavar="OUT.gguf", type=Path, help="the language model (NAME-TYPE.gguf)")
    command.add_argument("--mmproj", metavar="OUT.gguf", type=Path, help="the vision encoder (mmproj-OUT.gguf)")
    command.add_argument(
        "--type", default="f16", help="of the language model's weights: f32, f16, bf16, q8_0, q4_k_m, ... (%(default)s)"
    )
    command.add_argument(
        "--mmproj-type", metavar="TYPE", default="f16", help="of the encoder's: f32, f16, bf16, q8_0 (%(default)s)"
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--profile", metavar="PRESET|FILE", help="a preset's name or a JSON file, instead of the model's own preset"
    )
    which.add_argument("--no-profile", action="store_true", help="write none: the model runs unpruned")
    command.add_argument("--name", help="of the model (the folder's name)")
    command.add_argument(
        "--tokenizer-pre",
        metavar="NAME",
        help="how the tokenizer cuts text, in llama.cpp's words, when it does not know that itself: qwen2",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument("--verbose", action="store_true", help="keep the converter's log, and say where it is")
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from halfv_convert import convert

    with _log(args.verbose) as log:
        done = convert(
            args.folder,
            args.output,
            args.mmproj,
            type=args.type.lower(),
            mmproj_type=args.mmproj_type.lower(),
            profile=_profile(args.profile),
            with_profile=not args.no_profile,
            name=args.name,
            tokenizer_pre=args.tokenizer_pre,
            log=log,
            say=_say,
        )
    if args.json:
        carried = done.profile and done.profile.to_json()
        print(json.dumps({"model": str(done.model), "mmproj": str(done.mmproj), "profile": carried}, indent=2))
    for path in (done.model, done.mmproj):
        _say(f"wrote {path} ({path.stat().st_size / 1e6:,.1f} MB).")
    _say(f"profile: {done.source}.")


def _profile(given: str | None) -> Profile | str | None:
    if given is None or (given.lower() in presets.PRESETS):
        return given
    path = Path(given)
    if path.suffix == ".json" or path.exists():
        return stored.read_json(path)
    return presets.get(given).name  # which says what there is


@contextlib.contextmanager
def _log(verbose: bool) -> Iterator[IO[str] | None]:
    if not verbose:
        yield None
        return
    with tempfile.NamedTemporaryFile("w", prefix="halfv-convert-", suffix=".log", delete=False) as log:
        _say(f"the converter's log is {log.name}.")
        yield log


def _say(text: str) -> None:
    print(f"halfv: {text}", file=sys.stderr)

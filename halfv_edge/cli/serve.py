"""`halfv serve`: llama-server with a model of ours, its encoder and its profile."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from halfv_edge.cli import flags
from halfv_edge.cli.errors import CODES, Parser
from halfv_edge.hub.demo import DEMO_FOLDER, DEMO_NOTE
from halfv_edge.hub.find import find_files

NAME = "serve"
EPILOG = (
    "Every other flag is llama-server's own and is passed on to it: --host, --port, -c, -np, --api-key, --metrics, ... "
    f"`halfv serve --help-all` lists them. {CODES}"
)

# our hooks in llama-server take these from the environment
SETTINGS = {
    "--encoder-cache-mb": ("HALFV_ENCODER_CACHE_MB", "MB", "memory for encoded pictures, for all slots (512; 0: none)"),
    "--encoder-cache": ("HALFV_ENCODER_CACHE", "DIR", "keep encoded pictures there too, up to 4 GB"),
    "--media-hosts": (
        "HALFV_MEDIA_HOSTS",
        "A,B",
        "fetch pictures by http from these hosts (none); * is all public ones",
    ),
    "--max-pictures": ("HALFV_MAX_PICTURES", "N", "in a request (64)"),
    "--max-megapixels": ("HALFV_MAX_MEGAPIXELS", "N", "of a picture (100)"),
}


def add_command(commands: flags.Commands) -> None:
    """Put `serve` among the commands."""
    text = "serve a model over HTTP: llama-server, its routes and its web page"
    command = commands.add_parser(NAME, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EPILOG)
    _add_flags(command)
    command.set_defaults(run=_serve)


def _add_flags(command: argparse.ArgumentParser) -> None:
    flags.add_model(command)
    flags.add_encoder_pruning(flags.add_pruning(command))
    serving = command.add_argument_group("serving")
    for flag, (_, metavar, text) in SETTINGS.items():
        serving.add_argument(flag, metavar=metavar, type=flags.count if metavar in ("N", "MB") else str, help=text)
    serving.add_argument("--draft", metavar="TWIG.gguf", help="a twig from `halfv twig`, which drafts the answers")
    command.add_argument("--help-all", action="store_true", help="llama-server's own flags")


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our flags, and the rest for llama-server. argparse would take its -mg 1 for our -m with the value g."""
    parser = Parser()
    _add_flags(parser)
    takes_value = {name: action.nargs is None for action in parser._actions for name in action.option_strings}
    ours: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if name not in takes_value:
            rest.append(word)
            continue
        ours.append(word)
        if takes_value[name] and not equals and left:
            ours.append(left.pop(0))
    return ours, rest


def _serve(args: argparse.Namespace) -> int:
    from halfv_edge.engine.options import Pruning
    from halfv_edge.server import llama_server
    from halfv_edge.server.outlook import look

    program = llama_server.program()
    if args.help_all:
        return subprocess.run([program, "--help"], check=False).returncode
    files = find_files(args.model, args.hf, args.mmproj)
    if args.draft:
        flags.check_there(args.draft)
    outlook = look(files.model, files.mmproj, Pruning(**flags.pruning(args)))
    llama_server.check_free(args.rest)
    at = llama_server.address(args.rest)
    notes = [f"{at}  {outlook.about.path.name}"]
    notes += [DEMO_NOTE] if files.model.parent == DEMO_FOLDER else []
    notes.append(_pruning(outlook.why_whole, outlook.profile_source, outlook.resolved.profile, outlook.about.n_layer))
    if not llama_server.has_web_page():
        notes.append(
            "No web page: this build was made without npm. Install npm and build again, or use another client."
        )
    if not llama_server.is_local(args.rest) and not llama_server.has_key(args.rest):
        notes.append("Whoever reaches this address can use the model: --api-key asks for a key.")
    for note in notes:
        print(f"halfv: {note}", file=sys.stderr)
    given = {variable: getattr(args, flag[2:].replace("-", "_")) for flag, (variable, _, _) in SETTINGS.items()}
    words = [*llama_server.draft_flags(args.draft), *args.rest] if args.draft else args.rest
    settings = {variable: str(value) for variable, value in given.items() if value is not None}
    env = llama_server.environment(outlook, os.environ, with_draft=args.draft is not None)
    return start(llama_server.command(outlook, words), env | settings)


def _pruning(why_whole: str, source: str, profile: object, n_layer: int) -> str:
    from halfv_edge.profile.profile import Profile

    if why_whole or not isinstance(profile, Profile):
        return f"Nothing is pruned: {why_whole}."
    steps = []
    if profile.image_loss:
        steps.append("the size that what they show needs")
    if profile.encoder_keep < 1:
        steps.append(
            f"{100 * profile.encoder_keep:g}% of themselves from layer {profile.encoder_layer} of the encoder on"
        )
    if profile.input_merge < 1:
        steps.append(f"{100 * profile.input_merge:g}% of their rows when alike ones are averaged")
    if profile.input_keep < 1:
        steps.append(f"{100 * profile.input_keep:g}% of their tokens before the first layer")
    if profile.prunes(n_layer):
        whose = "of those" if steps else "of their tokens"
        steps.append(f"{100 * profile.ivr_keep:g}% {whose} from layer {profile.ivr_layer} on")
    return f"Pictures keep {', '.join(steps)} (profile: {source})."


def start(command: Sequence[str], env: dict[str, str]) -> int:
    """In place of this process where the system can, so that signals and exit codes are the program's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execvpe(command[0], list(command), env)
    return subprocess.run(command, env=env, check=False).returncode

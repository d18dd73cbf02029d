"""`halfv doctor`: is everything there, and will pictures be pruned."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from halfv_cpp import LibraryError

from halfv_edge.cli import errors, flags, info
from halfv_edge.errors import HalfVError
from halfv_edge.hub.find import find_files

VARIABLES = ("HALFV", "HALFV_PROFILE", "HALFV_LIB_DIR", "HALFV_UNDO_MB", "HALFV_STATES")
SERVER_PARTS = {"web_page": "its web page", "https": "https"}


def add_command(commands: flags.Commands) -> None:
    """Put `doctor` among the commands."""
    text = "say whether everything is there, and whether a model's pictures will be pruned"
    command = commands.add_parser("doctor", help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=errors.CODES)
    flags.add_model(command)
    flags.add_pruning(command)
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    found = collect(args)
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return errors.FAILURE if found["problems"] else 0


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """What there is; what is missing or broken is a sentence in `problems`."""
    problems: list[str] = []
    found: dict[str, Any] = {"build": None, "server": None, "model": None, "problems": problems}
    found["environment"] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    try:
        found["build"] = info.collect()
        if not found["build"]["patched"]:
            problems.append(f"The libraries in {found['build']['lib_dir']} are a llama.cpp without HalfV.")
        found["server"] = _server(problems)
        found["model"] = _model(args)
    except (HalfVError, LibraryError) as error:
        problems.append(errors.in_words(error).removeprefix("halfv: "))
    return found


def _server(problems: list[str]) -> dict[str, Any]:
    from halfv_edge.server import llama_server

    path = None
    try:
        path = str(llama_server.program())
    except HalfVError as error:
        problems.append(str(error))
    return {"path": path, "web_page": llama_server.has_web_page(), "https": llama_server.has_https()}


def _model(args: argparse.Namespace) -> dict[str, Any]:
    from halfv_edge.engine.options import Pruning
    from halfv_edge.server.outlook import look

    files = find_files(args.model, args.hf, args.mmproj)
    wanted = Pruning(profile=flags.profile(args.profile), keep=args.keep)
    return look(files.model, files.mmproj, wanted).as_json()


def as_text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [info.as_text(found["build"])] if found["build"] else []
    if server := found["server"]:
        parts = [f"with{'' if server[key] else 'out'} {text}" for key, text in SERVER_PARTS.items()]
        lines.append(f"server     {', '.join([server['path'], *parts]) if server['path'] else 'none'}")
    lines += [f"set        {name}={value}" for name, value in found["environment"].items()]
    if model := found["model"]:
        lines.append(f"model      {model['path']} ({model['architecture']}, {model['n_layer']} layers)")
        lines.append(f"encoder    {model['mmproj'] or 'none'}{f' ({p})' if (p := model['projector']) else ''}")
        lines.append(f"profile    {_profile(model)}")
        lines.append(f"pruning    {'no: ' + model['not_pruned'] if model['not_pruned'] else 'yes'}")
    lines += [f"problem    {problem}" for problem in found["problems"]]
    return "\n".join(lines)


def _profile(model: dict[str, Any]) -> str:
    profile = model["profile"]
    if profile is None:
        return f"none ({model['profile_source']})"
    first, deep = profile["ivr"], profile["ssr"]
    text = f"keeps {100 * first['keep']:g}% from layer {first['layer']}"
    if deep["layer"] < model["n_layer"]:
        text += f", {100 * deep['update']:g}% updated from layer {deep['layer']} (rest {deep['rest']})"
    return f"{text} ({model['profile_source']})"

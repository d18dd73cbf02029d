"""llama-server as it was built with our libraries: where it is, and how it is started for a model."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from halfv_cpp import library

from halfv_edge.engine.twig import LEAST_LIKELY, MOST_DRAFTED
from halfv_edge.errors import HalfVError
from halfv_edge.profile.resolve import switched_off
from halfv_edge.profile.stored import read_gguf
from halfv_edge.server.outlook import Outlook, whole

NAME = "llama-server.exe" if sys.platform == "win32" else "llama-server"
NO_ENCODER = ("--no-mmproj", "--no-mmproj-auto")
HOST, PORT = "127.0.0.1", "8080"  # upstream's own


def program() -> Path:
    path = library.lib_dir() / NAME
    if not path.is_file():
        raise HalfVError(
            f"{path} is missing: build it with `make build`, or `pip install .`, without -DHALFV_SERVER=OFF."
        )
    return path


def has_web_page() -> bool:
    return bool(library.manifest().get("web_page"))


def has_https() -> bool:
    """To fetch pictures with, and to serve."""
    return bool(library.manifest().get("https"))


def command(outlook: Outlook, flags: Sequence[str]) -> list[str]:
    """The command line: the model's files, then what the user gave for llama-server."""
    words = [str(program()), "--model", str(outlook.about.path)]
    if outlook.mmproj and not set(flags) & set(NO_ENCODER):
        words += ["--mmproj", str(outlook.mmproj)]
    profile = outlook.resolved.profile
    if profile and profile.takes_parts and not switched_off():
        words.append("--no-repack")  # of matrices that a processor packs for itself no part can be taken
    return [*words, *flags]


def draft_flags(twig: str) -> list[str]:
    """llama-server's own for a twig that drafts, with TwigVLM's numbers."""
    check = ["--spec-draft-n-max", str(MOST_DRAFTED), "--spec-draft-p-min", str(LEAST_LIKELY)]
    return ["--model-draft", twig, "--spec-type", "draft-simple", *check]


def environment(outlook: Outlook, given: Mapping[str, str], with_draft: bool = False) -> dict[str, str]:
    """llama-server takes the profile from its environment, which leaves the model's file as it is.

    That would be a draft's profile too, so beside one it has to be in the model's file.
    """
    profile = outlook.resolved.profile
    if with_draft and not switched_off():
        own = read_gguf(outlook.about)
        if profile is None and own:
            raise HalfVError("A profile that is switched off beside a twig: set HALFV=off in the environment instead.")
        if profile != own:
            raise HalfVError(
                f"{outlook.about.path.name} does not carry the profile that it is to run with, and one that is not in "
                "its file would be the twig's too: write it with `halfv profile add`."
            )
        return {name: value for name, value in given.items() if name != "HALFV_PROFILE"}
    if profile is None and outlook.resolved.source == "flag":
        profile = whole(outlook.about.n_layer)
    if profile is None or switched_off():
        return dict(given)
    # without the evidence, which may be long
    text = json.dumps(dataclasses.replace(profile, calibration=None).to_json(), separators=(",", ":"))
    return {**given, "HALFV_PROFILE": text}


def address(flags: Sequence[str], env: Mapping[str, str] = os.environ) -> str:
    """Where it will listen, as llama-server reads its flags and environment."""
    host = _value(flags, "--host") or env.get("LLAMA_ARG_HOST") or HOST
    port = _value(flags, "--port") or env.get("LLAMA_ARG_PORT") or PORT
    secure = _value(flags, "--ssl-key-file") or env.get("LLAMA_ARG_SSL_KEY_FILE")
    if host.endswith(".sock"):
        return f"unix:{host}"
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def check_free(flags: Sequence[str], env: Mapping[str, str] = os.environ) -> None:
    """Whether the port can be had; whatever else is wrong with the address llama-server says."""
    host = _value(flags, "--host") or env.get("LLAMA_ARG_HOST") or HOST
    port = _value(flags, "--port") or env.get("LLAMA_ARG_PORT") or PORT
    if host.endswith(".sock") or not port.isascii() or not port.isdigit():
        return
    try:
        for family, kind, _, _, place in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                if os.name == "posix":  # else a port that was left a minute ago counts as taken
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise HalfVError(f"Port {port} of {host} is taken by another program: choose one with --port.") from error


def is_local(flags: Sequence[str], env: Mapping[str, str] = os.environ) -> bool:
    host = _value(flags, "--host") or env.get("LLAMA_ARG_HOST") or HOST
    return host.startswith("127.") or host in ("localhost", "::1") or host.endswith(".sock")


def has_key(flags: Sequence[str], env: Mapping[str, str] = os.environ) -> bool:
    """Whether clients must have an API key."""
    return bool({"--api-key", "--api-key-file"} & set(flags) or env.get("LLAMA_API_KEY"))


def _value(flags: Sequence[str], name: str) -> str | None:
    """The last one counts."""
    places = [at for at, word in enumerate(flags[:-1]) if word == name]
    return flags[places[-1] + 1] if places else None

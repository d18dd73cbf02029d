"""The last conversation of `halfv chat`, which `--continue` goes on with. Only its owner may read it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfv_edge import files
from halfv_edge.errors import HalfVError

if TYPE_CHECKING:
    from halfv_edge.engine.messages import Message

VERSION = 1
MOST_BYTES = 256 << 20
MODEL_FLAGS = ("model", "hf", "mmproj")


def save(messages: list[Message], args: argparse.Namespace) -> None:
    """Remember what was said, and which model said it."""
    model = {flag: _lasting(getattr(args, flag)) for flag in MODEL_FLAGS}
    files.write_private(_path(), json.dumps({"version": VERSION, "messages": messages, **model}).encode())


def load(args: argparse.Namespace) -> list[Message]:
    """What was said; the model is the same unless the flags name one."""
    path = _path()
    if not path.is_file():
        raise HalfVError("--continue has nothing to go on with: have a conversation with `halfv chat` first.")
    raw = files.read_small(path, MOST_BYTES, "is too long to go on with: start without --continue")
    try:
        found: dict[str, Any] = json.loads(raw)
        if found["version"] != VERSION:
            raise ValueError
        messages: list[Message] = found["messages"]
        saved = {flag: found[flag] for flag in MODEL_FLAGS}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HalfVError(f"{path} is not a conversation of this version: start without --continue.") from error
    if args.model is None and args.hf is None:
        for flag in MODEL_FLAGS:
            setattr(args, flag, getattr(args, flag) or saved[flag])
    return messages


def _path() -> Path:
    return files.state_folder() / "last-chat.json"


def _lasting(given: str | None) -> str | None:
    """A path that is the same in another folder."""
    return os.path.abspath(given) if given is not None and os.path.lexists(given) else given

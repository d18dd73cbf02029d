"""Folders for what is kept between runs, by the XDG base directories."""

from __future__ import annotations

import os
from pathlib import Path

OURS = "halfv-edge"


def cache_folder() -> Path:
    """For what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / OURS


def state_folder() -> Path:
    """For what cannot, such as a history."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / OURS

"""Where things are kept between runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from halfv_edge import files

CACHE = (files.cache_folder, "XDG_CACHE_HOME")
STATE = (files.state_folder, "XDG_STATE_HOME")


@pytest.mark.parametrize(
    ("kind", "platform", "default"),
    [
        (CACHE, "linux", ".cache/halfv-edge"),
        (STATE, "linux", ".local/state/halfv-edge"),
        (CACHE, "darwin", "Library/Caches/halfv-edge"),
        (STATE, "darwin", "Library/Application Support/halfv-edge"),
        (CACHE, "win32", "local/halfv-edge"),
        (STATE, "win32", "local/halfv-edge"),
    ],
)
def test_folders(
    kind: tuple[Callable[[], Path], str], platform: str, default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, variable = kind
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for value in ("", None):  # an empty one counts as none
        monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(variable)
        assert folder() == tmp_path / default
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine" / "halfv-edge"

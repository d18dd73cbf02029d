"""Where things are kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from halfv_edge import files


@pytest.mark.parametrize(
    ("folder", "variable", "default"),
    [
        (files.cache_folder, "XDG_CACHE_HOME", ".cache/halfv-edge"),
        (files.state_folder, "XDG_STATE_HOME", ".local/state/halfv-edge"),
    ],
)
def test_folders(
    folder: Callable[[], Path], variable: str, default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", None):  # an empty one counts as none
        monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(variable)
        assert folder() == tmp_path / default
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine" / "halfv-edge"

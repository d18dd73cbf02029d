"""llama-server of this build, with the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest
from halfv_cpp import library

from halfv_edge.server import llama_server


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder that llama-server is in."""
    if not (library.lib_dir() / llama_server.NAME).is_file():
        pytest.skip("llama-server was not built (HALFV_SERVER=OFF)")
    return library.lib_dir()

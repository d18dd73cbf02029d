"""An encoder for which there is no memory is a sentence in the log, and the process goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_encoders import make_windowed
from tests.support.tiny_models import make_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space for each process")

# Weights take 72 MiB in the file's F32 and 21 in Q8_0, the buffers for the picture 157.
SPARE_MIB = (10, 60, 400)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    text = make_tiny(folder / "text.gguf", "llama", n_embd=64, n_layer=4)
    return text, make_windowed(folder / "mmproj.gguf", "qwen2.5vl_merger", n_embd=64, n_vision=512, n_ff=1540)


@pytest.mark.parametrize("weights", ["q8_0", "file", "off"])
def test_out_of_memory(files: tuple[Path, Path], weights: str) -> None:
    program = Path(__file__).parents[1] / "support" / "drive_encoder_memory.py"
    command = [sys.executable, program, *files, weights, *map(str, SPARE_MIB)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [
        f"{what} {mib} {'done' if mib == SPARE_MIB[-1] else 'failed'}"
        for what in ("load", "encode")
        for mib in SPARE_MIB
    ]
    assert done.stdout.split("\n")[:-1] == expected
    assert done.stderr.count(": out of memory") == done.stdout.count("failed")

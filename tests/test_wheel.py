"""The built wheel, installed where nothing of this checkout can be seen, answers the README's first question."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support import ROOT

NEEDS = ("numpy", "tqdm", "jinja2", "pillow", "markupsafe")  # dependencies, and theirs
LEFT_OUT = ("HALFV", "PYTHON", "LLAMA", "MTMD", "LD_")  # of the environment


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fresh environment with the wheel: dependencies are links to those of this one, so nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    # in the build folder of `make build`, so only what changed since then is compiled
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "-Ccmake.define.HALFV_BUILD_TESTS=ON"]
    run(*pip, "wheel", "-q", *options, "-w", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("halfv_edge-*.whl")

    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    for name in NEEDS:
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {".."}:
            (site / top).symlink_to(found.locate_file(top))
    run(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    return python


def test_nothing_of_the_checkout_is_used(python: Path, tmp_path: Path) -> None:
    code = "import halfv_edge as a, halfv_cpp as b, halfv_convert as c; print(a.__file__, b.__file__, c.__file__)"
    places = run(python, "-c", code, cwd=tmp_path).split()
    assert len(places) == 3 and all(Path(place).is_relative_to(python.parents[1]) for place in places)


def test_the_first_question_of_the_readme(python: Path, tmp_path: Path) -> None:
    halfv = python.with_name("halfv")
    picture = ROOT / "examples" / "receipt.png"
    assert "What is the total?" in (ROOT / "README.md").read_text()
    assert "79.00" in run(halfv, "chat", picture, "-p", "What is the total?", cwd=tmp_path)

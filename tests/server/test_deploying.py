"""The container file, the compose file and llama-swap's: they parse, and the flags in them exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halfv_edge.cli import serve
from halfv_edge.server import llama_server
from tests.support import ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
EXAMPLES = ROOT / "examples" / "server"


def loaded(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text())


def commands() -> Iterator[list[str]]:
    """What is given to `halfv serve` in examples and documents."""
    for model in loaded("llama-swap.yaml")["models"].values():
        words = shlex.split(model["cmd"])
        assert words[:2] == ["halfv", "serve"] and "${PORT}" in words
        yield words[2:]
    yield loaded("compose.yaml")["services"]["halfv"]["command"]
    last = (EXAMPLES / "Containerfile").read_text().splitlines()[-1]
    yield re.findall(r'"([^"]*)"', last)[2:]
    for name in ("serve.md", "deploying.md"):
        text = (ROOT / "docs" / name).read_text()
        yield [flag for flag in re.findall(r"`(-[\w-]+)", text) if not flag.startswith(("-D", "--build-arg", "--gpus"))]


def test_flags_exist(programs: Path) -> None:
    done = subprocess.run([programs / llama_server.NAME, "--help"], capture_output=True, text=True, check=True)
    theirs = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.stdout))
    found = [word for words in commands() for word in words if re.match(r"--?[a-z]", word)]
    ours = {flag for flag in found if serve.split([flag])[0]} | {"--help-all", "--json", "--device"}
    assert len(found) > 30 and {"--api-key-file", "-np"} <= set(found)
    assert sorted(set(found) - theirs - ours) == []


def test_what_compose_says() -> None:
    services = loaded("compose.yaml")["services"]
    build = services["halfv"]["build"]
    context = (EXAMPLES / build["context"]).resolve()
    assert context == ROOT and (context / build["dockerfile"]).is_file()
    assert services["open-webui"]["environment"]["OPENAI_API_BASE_URL"] == "http://halfv:8080/v1"


def test_container_file() -> None:
    """Each stage uses the arguments that it declares, and installs the package as the README does."""
    text = (EXAMPLES / "Containerfile").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", text)) == set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert 'pip install --no-cache-dir "/source[hub]"' in text and text.count("FROM ") == 2

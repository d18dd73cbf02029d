"""Runs the examples of docs/python.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from halfv_cpp import machine

from tests.support import ROOT
from tests.support.vlm import Vlms, picture

EXAMPLES = (ROOT / "docs" / "python.md").read_text().split("```python\n")[1:]


@pytest.mark.parametrize(
    "example", [text.split("```")[0] for text in EXAMPLES], ids=lambda text: text.split("\n")[0][2:]
)
def test_examples_of_the_docs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vlms: Vlms) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "n_cores", lambda: 1)
    source = vlms.path("qwen2vl")
    for name, file in (("model.gguf", source), ("mmproj-model.gguf", source.with_name("mmproj-model.gguf"))):
        (tmp_path / name).symlink_to(file)
    for seed, name in enumerate(("cat.jpg", "dog.png")):
        picture(seed).save(tmp_path / name)
    exec(compile(example, "docs/python.md", "exec"), {"__name__": "example"})

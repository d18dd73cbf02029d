"""Runs the Python examples of the pages about measuring."""

from __future__ import annotations

from pathlib import Path

import pytest
from halfv_cpp import machine

from tests.support import ROOT
from tests.support.vlm import Vlms, picture

PAGES = ("bench.md", "eval.md", "calibration.md")
EXAMPLES = [
    (page, text.split("```")[0])
    for page in PAGES
    for text in (ROOT / "docs" / page).read_text().split("```python\n")[1:]
]


@pytest.mark.parametrize(("page", "example"), EXAMPLES, ids=[example.split("\n")[0][2:] for _, example in EXAMPLES])
def test_examples(page: str, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vlms: Vlms) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "n_cores", lambda: 1)
    source = vlms.path("qwen2vl")
    for name, file in (("model.gguf", source), ("mmproj-model.gguf", source.with_name("mmproj-model.gguf"))):
        (tmp_path / name).symlink_to(file)
    picture(0).save(tmp_path / "cat.jpg")
    exec(compile(example, page, "exec"), {"__name__": "example"})


def test_every_page_has_an_example() -> None:
    assert {page for page, _ in EXAMPLES} == set(PAGES)

"""Pictures of other renderers: what they ask can be read off them, and what is kept for tests is."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.renderers import plots, typefaces, webpages
from training.renderers.plain import plain
from training.renderers.webpages import LAYOUTS

ONLY_TESTS = {"timetable", "profile", "login"}
READ_OFF = ("reading/", "document/", "chart/value", "chart/title", "interface/button", "interface/title")


def shown(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def test_answers_are_on_the_pages():
    """Every layout of every split, so that none can ask for what it does not show."""
    layouts, n_read = set(), 0
    for split in ("train", "test"):
        for seed in range(150):
            page = webpages.throw(seed, split, ["Sans"])
            layouts.add((split, page.layout))
            text = shown(page.html)
            for question in page.quiz.choose(30):
                if question.group.startswith(READ_OFF):
                    n_read += 1
                    assert question.answer in text, (page.layout, question)
    assert layouts == {(split, layout.__name__) for split in ("train", "test") for layout, _ in LAYOUTS[split]}
    assert n_read > 1000
    assert not any(split == "train" and layout in ONLY_TESTS for split, layout in layouts)


def test_fonts_of_tests_are_kept_apart():
    families = [f"Family {i}" for i in range(500)]
    assert 60 < sum(map(typefaces.held_out, families)) < 140
    assert all(map(typefaces.held_out, ("Lato", "Carlito", "Manrope")))


def test_plain_pictures():
    kinds = set()
    for seed in range(40):
        sample = plain(seed)
        kinds.add(sample.layout)
        assert sample.image.size == (320, 320) and sample.questions
        assert np.asarray(sample.image).std() > 1
    assert len(kinds) == 4


def test_a_test_set_of_plain_pictures(tmp_path):
    folder = tmp_path / "set"
    command = [sys.executable, "-m", "training.renderers.testset", "-o", str(folder), "--questions", "9"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert len(lines) == 9 and all((folder / each["image"]).exists() for each in lines)
    assert subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True).returncode == 1


def test_plots(tmp_path):
    pytest.importorskip("matplotlib", reason="plots are drawn by matplotlib")
    import matplotlib

    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    layouts = set()
    for seed in range(12):
        sample = plots.plot(seed, "train", [font], (20, 16))
        layouts.add(sample.layout)
        assert sample.image.size == (400, 320) and len(sample.questions) >= plots.FEWEST
        written = "".join(char for char, *_ in sample.chars)
        for question in sample.questions:
            if question.group in ("chart/title", "chart/extreme", "chart/place"):
                assert question.answer.replace(" ", "") in written, question
        for _, x0, y0, x1, y1 in sample.chars:
            assert -3 <= x0 <= x1 <= 403 and -3 <= y0 <= y1 <= 323
    assert len(layouts) >= 3


def test_pages_in_chromium(tmp_path):
    pytest.importorskip("playwright", reason="pages are drawn by Chromium, which playwright steers")
    browser = pytest.importorskip("training.renderers.browser")
    if not shutil.which(browser.CHROMIUM):
        pytest.skip(f"there is no {browser.CHROMIUM}")
    (tmp_path / typefaces.INDEX).write_text(json.dumps({"DejaVu Sans": ["a.ttf", "a.ttf"]}))
    drawn = browser.drawn("train", tmp_path, 0)
    for _ in range(3):
        sample = next(drawn)
        written = "".join(char for char, *_ in sample.chars)
        pixels = np.asarray(sample.image).astype(int)
        assert len(written) > 2 and sample.image.width % 20 == 0 and sample.image.height % 20 == 0
        for _, x0, y0, x1, y1 in sample.chars:  # something is drawn where a letter is said to be
            box = pixels[max(0, y0) : y1, max(0, x0) : x1]
            assert box.size and box.max(axis=(0, 1)).sum() - box.min(axis=(0, 1)).sum() > 20
    drawn.close()

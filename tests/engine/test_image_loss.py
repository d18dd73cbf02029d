"""Pictures that are made smaller, as Python, the commands and statistics have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from halfv_edge.engine.model_profile import resolve_profile
from halfv_edge.engine.options import Pruning
from halfv_edge.errors import HalfVError
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import CHATML, PROFILE, QUESTION, Vlms

WHOLE = Profile(1, 1.0, 0.1, 6, 1.0, "dropped", min_visual_tokens=1)  # prunes nothing
COLUMNS, ROWS = 16, 12
BLANK = Image.new("RGB", (28 * COLUMNS, 28 * ROWS), "beige")


def fine_print() -> Image.Image:
    picture = BLANK.copy()
    draw = ImageDraw.Draw(picture)
    for x in range(0, 40, 2):
        draw.line((x, 0, x, 40), fill="black")
    return picture


def test_counted(vlms: Vlms) -> None:
    """Also where another chat had the picture encoded."""
    n_full = COLUMNS * ROWS
    for n_encoded in (1, 0):
        with vlms.load("qwen2vl", profile=WHOLE, image_loss=0.1).chat() as chat:
            chat.answer(QUESTION, [BLANK], max_tokens=1)
            stats = chat.stats
            assert (stats.n_patches, stats.n_grid, stats.n_encoded) == (n_full, 12, n_encoded)
            assert stats.n_grid == stats.n_rows == stats.n_visual
        with vlms.load("qwen2vl", profile=WHOLE, image_loss=0.1).chat() as chat:
            chat.answer(QUESTION, [fine_print()], max_tokens=1)
            assert chat.stats.n_patches == chat.stats.n_grid == n_full
    with vlms.load("qwen2vl", profile=WHOLE).chat() as chat:
        chat.answer(QUESTION, [BLANK], max_tokens=1)
        assert chat.stats.n_patches == chat.stats.n_grid == n_full


def test_token_maps(vlms: Vlms) -> None:
    with vlms.load("qwen2vl", profile=WHOLE, image_loss=0.1).chat() as chat:
        chat.answer(QUESTION, [BLANK], max_tokens=1)
        (tile,) = chat.token_maps[0].tiles
        assert (tile.columns, tile.rows, tile.n_patches) == (4, 3, 12)


@pytest.mark.parametrize("loss", [-0.1, 1.1])
def test_mistakes(loss: float, vlms: Vlms) -> None:
    with pytest.raises(HalfVError, match=rf"image_loss = {loss} is not valid: it must be between 0 and 1\."):
        resolve_profile(ModelFile.read(vlms.path("qwen2vl")), Pruning(image_loss=loss))


def test_commands(tmp_path: Path) -> None:
    make_tiny(tmp_path / "m.gguf", "qwen2vl", seed=3, profile=PROFILE, **{"tokenizer.chat_template": CHATML})
    make_tiny_mmproj(tmp_path / "mmproj-m.gguf", "qwen2vl", n_embd=64)
    BLANK.save(tmp_path / "a.png")
    line = [sys.executable, "-m", "halfv_edge", "chat", "-m", "m.gguf", "a.png", "-p", QUESTION, "--threads", "1"]

    def said(*flags: str) -> str:
        done = subprocess.run([*line, "--max-tokens", "2", *flags], cwd=tmp_path, capture_output=True, text=True)
        return done.stderr

    assert f" | shrunk {COLUMNS * ROWS} -> 12 tokens: little detail | " in said("--image-loss", "0.1")
    assert "shrunk" not in said() and "shrunk" not in said("--image-loss", "0")
    assert "--image-loss 2" in said("--image-loss", "2")

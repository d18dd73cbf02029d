"""Fonts out of PyPI packages, and their glyphs as masks."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# package -> families of (regular, bold) files; each family serves one split only
FAMILIES = {
    "train": {
        "font_roboto": [("Roboto-Regular.ttf", "Roboto-Bold.ttf"), ("Roboto-Italic.ttf", "Roboto-Medium.ttf")],
        "font_source_sans_pro": [("SourceSansPro-Regular.otf", "SourceSansPro-Semibold.otf")],
        "font_source_serif_pro": [("SourceSerifPro-Regular.otf", "SourceSerifPro-Bold.otf")],
        "font_hanken_grotesk": [("HankenGrotesk-Regular.otf", "HankenGrotesk-Bold.otf")],
        "font_caladea": [("Caladea-Regular.ttf", "Caladea-Bold.ttf")],
    },
    "validation": {"font_manrope": [("Manrope-Regular.ttf", "Manrope-Bold.ttf")]},
    "test": {"font_lato": [("Lato-Regular.ttf", "Lato-Bold.ttf")]},
}


class Face:
    """One font at one size."""

    def __init__(self, path: Path, size: int):
        self._font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
        self._glyphs: dict[str, tuple[Image.Image, int, int, float]] = {}
        self.size = size
        self.ascent = -self._font.getbbox("d", anchor="ls")[1]
        self.height = self.ascent + self._font.getbbox("g", anchor="ls")[3]

    def glyph(self, char: str) -> tuple[Image.Image, int, int, float]:
        """Mask, its place right of the pen and below the baseline, and the pen's advance."""
        found = self._glyphs.get(char)
        if found is None:
            x0, y0, x1, y1 = self._font.getbbox(char, anchor="ls")
            mask = Image.new("L", (max(1, x1 - x0), max(1, y1 - y0)))
            ImageDraw.Draw(mask).text((-x0, -y0), char, 255, self._font, anchor="ls")
            ink = mask.getbbox() or (0, 0, 1, 1)  # a space has none
            found = mask.crop(ink), x0 + ink[0], y0 + ink[1], self._font.getlength(char)
            self._glyphs[char] = found
        return found

    def width(self, text: str) -> int:
        return round(sum(self.glyph(char)[3] for char in text))


# families besides these, of the training split, that a process has chosen to draw with
EXTRA: list[tuple[Path, Path]] = []


def families(split: str) -> list[tuple[Path, Path]]:
    return packaged(split) + (EXTRA if split == "train" else [])


@cache
def packaged(split: str) -> list[tuple[Path, Path]]:
    """(regular, bold) of every family of a split."""
    found = []
    for package, files in FAMILIES[split].items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"The font package '{package}' is missing: pip install '.[training]'", name=package
            )
        folder = Path(spec.origin).parent / "files"
        found += [(folder / regular, folder / bold) for regular, bold in files]
    return found


@cache
def face(path: Path, size: int) -> Face:
    return Face(path, size)

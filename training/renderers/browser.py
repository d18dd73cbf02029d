"""`python -m training.renderers.browser DIR`: web pages drawn by Chromium, with the box of every letter.

Needs Chromium and `pip install playwright`. A photograph behind a page comes from the wallpapers of this machine.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from training import pictures
from training.pictures.canvas import CHARACTERS
from training.renderers import typefaces, webpages
from training.renderers.store import Writer
from training.renderers.webpages import TOKEN, Thrown

CHROMIUM = "/usr/bin/chromium"
WALLPAPERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"))
FEWEST, MOST = 3, 16  # questions
LEAST_ZOOM = 0.6
LARGEST_LETTERS = 48  # pixels of what is written at the page's own size; titles are larger
RESTART_AFTER = 400  # pages; a browser grows

SHOW = """([style, body]) => {
    document.head.innerHTML = '<style>' + style + '</style>';
    document.body.innerHTML = '<div id="sheet">' + body + '</div>';
    const box = document.getElementById('sheet').getBoundingClientRect();
    return [box.width, box.height];
}"""
FIND = """([left, top, zoom]) => {
    const sheet = document.getElementById('sheet');
    sheet.style.zoom = zoom; sheet.style.left = left / zoom + 'px'; sheet.style.top = top / zoom + 'px';
    const chars = [], range = document.createRange();
    const walker = document.createTreeWalker(sheet, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        for (let i = 0; i < node.data.length; i++) {
            if (!node.data[i].trim()) continue;
            range.setStart(node, i); range.setEnd(node, i + 1);
            const box = range.getBoundingClientRect();
            if (box.width) chars.push([node.data[i], box.left, box.top, box.right, box.bottom]);
        }
    }
    const shapes = [...sheet.querySelectorAll('[data-shape]')].map(each => {
        const box = each.getBoundingClientRect();
        return [...each.dataset.shape.split(' '), box.left, box.top, box.right, box.bottom];
    });
    return [chars, shapes];
}"""


def wallpapers(split: str) -> list[Path]:
    """Photographs; a fifth of them is for tests alone."""
    found = sorted(
        {
            path.name: path
            for folder in WALLPAPERS
            for path in folder.rglob("*")
            if path.suffix in (".jpg", ".png", ".webp")
        }.values()
    )
    return [path for path in found if (zlib.crc32(path.stem.split("-")[0].encode()) % 5 == 0) == (split != "train")]


@lru_cache(maxsize=64)
def photograph(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    image.thumbnail((1400, 1400))
    return image


def behind(rng: random.Random, paths: list[Path], width: int, height: int) -> Image.Image:
    """A part of a photograph."""
    image = photograph(rng.choice(paths))
    scale = max(width / image.width, height / image.height, rng.uniform(0.3, 1))
    image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))))
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


class Browser:
    def __init__(self, split: str, fonts: Path):
        from playwright.sync_api import sync_playwright

        self.split = split
        self.families = list(typefaces.families(fonts, split))
        self.photos = wallpapers(split)
        self._playwright = sync_playwright().start()
        self._browser: Any = None
        self._drawn = 0

    def _page(self) -> Any:
        if self._drawn % RESTART_AFTER == 0:
            if self._browser:
                self._browser.close()
            self._browser = self._playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--font-render-hinting=none"]
            )
            self._view = self._browser.new_page(viewport={"width": 640, "height": 640})
            self._view.set_content("<html><body></body></html>")
        self._drawn += 1
        return self._view

    def draw(self, seed: int) -> pictures.Sample | None:
        """The page of a seed; None where it does not fit or has too little to ask."""
        thrown = webpages.throw(seed, self.split, self.families)
        rng = random.Random(f"browser/{self.split}/{seed}")
        page = self._page()
        page.set_viewport_size({"width": thrown.columns * TOKEN, "height": thrown.rows * TOKEN})
        wide, high = page.evaluate(SHOW, [thrown.css, thrown.html])
        columns, rows = fitting(thrown, wide, high)
        width, height = columns * TOKEN, rows * TOKEN
        largest = min(width / wide, height / high, LARGEST_LETTERS / thrown.letters)
        if largest < LEAST_ZOOM:
            return None
        zoom = min(1.0, largest) if rng.random() < 0.4 else rng.uniform(min(1.0, largest), largest)
        if (columns, rows) != (thrown.columns, thrown.rows):
            page.set_viewport_size({"width": width, "height": height})
        left, top = rng.uniform(0, width - wide * zoom), rng.uniform(0, height - high * zoom)
        chars, shapes = page.evaluate(FIND, [left, top, zoom])
        shot = Image.open(io.BytesIO(page.screenshot(omit_background=thrown.photo)))
        if thrown.photo:
            shot = Image.alpha_composite(behind(rng, self.photos, *shot.size).convert("RGBA"), shot.convert("RGBA"))
        questions = thrown.quiz.choose(MOST)
        if len(questions) < FEWEST:
            return None
        return pictures.Sample(
            shot.convert("RGB"),
            questions,
            [(char, *map(round, box)) for char, *box in chars if char in CHARACTERS],
            [(kind, colour, *map(round, box)) for kind, colour, *box in shapes],
            "web",
            thrown.layout,
        )

    def close(self) -> None:
        self._browser.close()
        self._playwright.stop()


def fitting(thrown: Thrown, wide: float, high: float) -> tuple[int, int]:
    """Columns and rows of tokens: as thrown, or the smallest that holds the page, or the largest."""
    if wide <= thrown.columns * TOKEN and high <= thrown.rows * TOKEN:
        return thrown.columns, thrown.rows
    sizes = sorted(webpages.SIZES, key=lambda size: size[0] * size[1])
    holding = (size for size in sizes if size[0] * TOKEN >= wide and size[1] * TOKEN >= high)
    return next(holding, sizes[-1])


def drawn(split: str, fonts: Path, first: int) -> Iterator[pictures.Sample]:
    browser = Browser(split, fonts)
    try:
        while True:
            sample = browser.draw(first)
            first += 1
            if sample:
                yield sample
    finally:
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.renderers.browser", description=__doc__)
    parser.add_argument("folder", type=Path, help="of web.bin and web.jsonl.gz, to write")
    parser.add_argument("--fonts", type=Path, required=True, help="folder of training.renderers.typefaces")
    parser.add_argument("--split", choices=pictures.SPLITS, default="train")
    parser.add_argument("--name", default="web", help="of the files (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="(%(default)d)")
    parser.add_argument("--pages", type=int, default=3000, help="at most (%(default)d)")
    parser.add_argument("--most-mb", type=float, default=25, help="of pictures (%(default)g)")
    parser.add_argument("--minutes", type=float, default=30, help="at most (%(default)g)")
    parser.add_argument("--quality", type=int, default=70, help="of WebP (%(default)d)")
    args = parser.parse_args()
    writer, begin = Writer(args.folder, args.name, args.quality), time.monotonic()
    try:
        for number, sample in enumerate(drawn(args.split, args.fonts, args.first), 1):
            writer.add(sample)
            if number % 100 == 0:
                print(f"{number} pages, {writer.bytes / 1e6:.1f} MB", file=sys.stderr, flush=True)
            is_late = time.monotonic() - begin > 60 * args.minutes
            if number >= args.pages or writer.bytes > 1e6 * args.most_mb or is_late:
                break
    finally:
        writer.close()


if __name__ == "__main__":
    main()

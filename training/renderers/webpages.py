"""Web pages with questions, as HTML, thrown with a seed; `training.renderers.browser` draws them.

What stands in `data-shape="kind colour"` is a shape of the sample, so that training knows where it is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.pictures import colours
from training.pictures.quiz import Quiz
from training.renderers.webdocuments import article, bars, form, menu, receipt, table
from training.renderers.webpage import Page, css
from training.renderers.webscreens import (
    cards,
    chat,
    dialog,
    figures,
    login,
    pictograms,
    poster,
    profile,
    settings,
    timetable,
)

SIZES = (  # in tokens of 20 pixels
    (16, 16), (16, 16), (20, 20), (24, 24), (16, 24), (24, 16), (32, 32), (28, 20), (20, 28), (32, 24), (24, 32),
    (12, 24),
)  # fmt: skip
TOKEN = 20
# layout and how often; those of tests are never all in training
LAYOUTS = {
    "train": [(receipt, 4), (form, 4), (table, 4), (bars, 4), (cards, 2), (article, 4), (chat, 1), (menu, 2),
              (settings, 4), (dialog, 4), (poster, 4), (pictograms, 2), (figures, 4)],
    "test": [(timetable, 1), (profile, 1), (login, 1), (receipt, 1), (table, 1), (bars, 1), (poster, 1), (settings, 1),
             (figures, 1)],
}  # fmt: skip
LAYOUTS["validation"] = LAYOUTS["test"]


@dataclass
class Thrown:
    html: str  # of the body
    css: str
    columns: int  # of tokens
    rows: int
    letters: int  # their size in pixels
    photo: bool
    quiz: Quiz
    layout: str


def throw(seed: int, split: str, fonts: list[str]) -> Thrown:
    """The page of a seed, in one of these families."""
    rng = random.Random(f"web/{split}/{seed}")
    layouts, weights = zip(*LAYOUTS[split], strict=True)
    layout = rng.choices(layouts, weights)[0]
    page = Page(rng, split, Quiz(rng))
    layout(page)
    _, paper = colours.background(rng, 0.25)
    if rng.random() < 0.15:
        paper = colours.shade(rng, rng.choice(list(colours.COLOURS)))
    ink = colours.plain_ink(paper) if page.photo or rng.random() < 0.6 else colours.readable(rng, paper)
    columns, rows = rng.choice(SIZES)
    size = min(rng.choice((11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 24, 28, 34)), rng.choice((16, 20, 24, 40)))
    shadow = "text-shadow:0 0 4px #000,0 0 2px #000;" if page.photo else ""
    ink = (255, 255, 255) if page.photo else ink
    edge = rng.randint(4, 24)
    style = (
        f"html,body{{margin:0;overflow:hidden}}h1,h2,h3{{margin:0 0 .3em 0}}hr{{border:0;border-top:1px dashed #888}}"
        f"#sheet{{position:absolute;left:0;top:0;box-sizing:border-box;width:max-content;padding:{edge}px;"
        f"min-width:{rng.choice((30, 60, 95))}%;line-height:{rng.uniform(1.1, 1.6):.2f}}}"
        f"body{{background:{css(paper)};color:{css(ink)};font-family:'{rng.choice(fonts)}';font-size:{size}px;{shadow}"
        f"font-weight:{rng.choice((400, 400, 400, 700))};letter-spacing:{rng.choice((0, 0, 0, 0.5, 1))}px}}"
    )
    return Thrown("".join(page.parts), style, columns, rows, size, page.photo, page.quiz, layout.__name__)

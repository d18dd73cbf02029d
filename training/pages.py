"""Pages full of text, from which the vision encoder learns to read: ten times the characters of a scene."""

from __future__ import annotations

import random

from training import pictures
from training.pictures import colours, words
from training.pictures.canvas import Canvas
from training.pictures.colours import SIZE

SIZES = (13, 28)
BAND = 0.25  # lines on a colour of their own


def page(seed: int) -> pictures.Sample:
    """A page of the training split."""
    rng = random.Random(f"page/{seed}")
    canvas = Canvas(rng, "train", dark=0.25)
    y = rng.randint(2, 14)
    while y < SIZE - SIZES[1] - 4:
        canvas.other_family()
        face = canvas.face(rng.randint(*SIZES))
        bottom = y + face.height + rng.randint(2, 7)
        paper = canvas.paper
        if rng.random() < BAND:
            paper = canvas.panel((0, y - 2, SIZE, bottom - 1), rng.choice(list(colours.COLOURS)))
        ink = colours.readable(rng, paper)
        x = rng.randint(2, 24)
        while True:
            text = _piece(rng)
            if x + face.width(text) > SIZE - 2:
                break
            canvas.text(x, y, text, face, ink)
            x += face.width(text) + round(face.size * rng.uniform(0.25, 1.2))
        y = bottom
    image = colours.with_grain(rng, canvas.image) if rng.random() < 0.3 else canvas.image
    return pictures.Sample(image, [], canvas.chars, canvas.shapes, "page", "page")


def _piece(rng: random.Random) -> str:
    """Words mostly; also what forms, receipts and charts are made of."""
    draw = rng.random()
    if draw < 0.6:
        text = words.word(rng, "train")
    elif draw < 0.72:
        text = words.number(rng)
    elif draw < 0.82:
        text = words.price(rng)
    elif draw < 0.92:
        text = words.code(rng)
    else:
        text = rng.choice((words.date, words.time))(rng)
    return text + rng.choice(",.:;?!%") if rng.random() < 0.1 else text

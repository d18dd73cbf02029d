"""Pictures with questions, drawn from a seed: `make(seed, split)`."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from training.pictures import charts, colours, documents, interfaces, reading, shapes
from training.pictures.canvas import CHARACTERS, NAMED_SHAPES, SHAPE_KINDS, Canvas, NoRoomError
from training.pictures.colours import COLOURS, SIZE
from training.pictures.phrases import template_words
from training.pictures.quiz import Question, Quiz

__all__ = [
    "CHARACTERS",
    "COLOURS",
    "EXTRA_TASKS",
    "KINDS",
    "NAMED_SHAPES",
    "SHAPE_KINDS",
    "SIZE",
    "SPLITS",
    "TASKS",
    "Question",
    "Sample",
    "make",
    "template_words",
]

TASKS = ("existence", "count", "attribute", "relation", "reading", "chart", "document", "interface")
EXTRA_TASKS = ("caption", "transcribe")  # for training only
SPLITS = ("train", "validation", "test")

# kind -> layouts with how often each is drawn
KINDS = {
    "shapes": [(shapes.scatter, 4), (shapes.counting, 4), (shapes.grid, 2), (shapes.framed, 2)],
    "words": [(reading.scattered, 3), (reading.panels, 3), (reading.lines, 3)],
    "mixed": [(reading.labelled_shapes, 1)],
    "chart": [(charts.bars, 3), (charts.lying_bars, 2), (charts.line, 2), (charts.pie, 2)],
    "document": [(documents.receipt, 4), (documents.form, 2), (documents.ticket, 1), (documents.table, 3)],
    "interface": [(interfaces.dialog, 2), (interfaces.entry_form, 2), (interfaces.options, 2), (interfaces.editor, 2)],
}
_OFTEN = {"shapes": 5, "words": 4, "mixed": 2, "chart": 4, "document": 4, "interface": 4}
FEWEST, MOST = 6, 10


@dataclass
class Sample:
    image: Image.Image
    questions: list[Question]
    chars: list[tuple[str, int, int, int, int]]
    shapes: list[tuple[str, str, int, int, int, int]]
    kind: str
    layout: str


def make(seed: int, split: str, kind: str | None = None, most: int = MOST) -> Sample:
    """The picture of a seed. kind: one of KINDS, None draws one; most: questions, if there are so many."""
    if split not in SPLITS:
        raise ValueError(f"No split is named '{split}': one of {', '.join(SPLITS)}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"No kind of picture is named '{kind}': one of {', '.join(KINDS)}")
    rng = random.Random(f"{split}/{seed}/{kind}")
    chosen = kind or rng.choices(list(_OFTEN), list(_OFTEN.values()))[0]
    layouts, weights = zip(*KINDS[chosen], strict=True)
    while True:
        layout = rng.choices(layouts, weights)[0]
        canvas = Canvas(rng, split, 0 if chosen == "document" else 0.15)
        quiz = Quiz(rng)
        try:
            layout(canvas, quiz)
        except NoRoomError:
            continue
        questions = quiz.choose(rng.randint(FEWEST, most))
        if len(questions) >= FEWEST:
            break
    image = colours.with_grain(rng, canvas.image) if rng.random() < 0.3 else canvas.image
    return Sample(image, questions, canvas.chars, canvas.shapes, chosen, layout.__name__)

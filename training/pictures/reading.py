"""Words and numbers: scattered, on coloured panels, as lines of text, and beside shapes."""

from __future__ import annotations

from itertools import pairwise

from training.pictures import colours, words
from training.pictures.canvas import NAMED_SHAPES, Box, Canvas, NoRoomError
from training.pictures.colours import SIZE
from training.pictures.phrases import NTH, an
from training.pictures.quiz import Quiz
from training.pictures.shapes import Thing, ask_attribute, ask_count, ask_existence, ask_relation, called


def some_text(canvas: Canvas) -> str:
    rng = canvas.rng
    draw = rng.random()
    if draw < 0.6:
        return words.word(rng, canvas.split)
    if draw < 0.75:
        return f"{words.word(rng, canvas.split)} {words.word(rng, canvas.split)}"
    if draw < 0.95:
        return words.number(rng) if draw < 0.88 else words.code(rng)
    return words.marked(rng, canvas.split)


def ask_words(canvas: Canvas, quiz: Quiz, texts: list[str]) -> None:
    """Whether a word is there: one of these, or another."""
    for _ in range(2):
        there = quiz.coin()
        shown = " ".join(texts).lower()
        word = canvas.rng.choice(texts) if there else words.word(canvas.rng, canvas.split)
        if there or word.lower() not in shown:
            quiz.add("existence/word", "yes" if there else "no", word=word)


def ask_transcript(quiz: Quiz, lines: list[str]) -> None:
    """Lines from top to bottom."""
    quiz.add("transcribe/all", " ".join(lines))
    for index, line in enumerate(lines[: len(NTH)]):
        quiz.add("transcribe/line", line, nth=NTH[index])


def ask_places(quiz: Quiz, placed: list[tuple[str, Box]]) -> None:
    """The outermost texts, where it is plain which one that is."""
    for place, edge, sign in (("top", 1, 1), ("bottom", 3, -1), ("left", 0, 1), ("right", 2, -1)):
        ordered = sorted(placed, key=lambda item: sign * item[1][edge])
        if len(ordered) > 1 and abs(ordered[0][1][edge] - ordered[1][1][edge]) > 22:
            quiz.add("reading/place", ordered[0][0], place=place)


def ask_numbers(quiz: Quiz, texts: list[str]) -> None:
    numbers = sorted({int(text) for text in texts if text.isdigit()})
    if len(numbers) == 1 and sum(any(char.isdigit() for char in text) for text in texts) == 1:
        quiz.add("reading/number", numbers[0])
    elif len(numbers) > 1:
        highest = quiz.coin()
        quiz.add(
            "reading/extreme number", numbers[-1] if highest else numbers[0], most="largest" if highest else "smallest"
        )


def scattered(canvas: Canvas, quiz: Quiz) -> None:
    rng = canvas.rng
    wanted = words.distinct(lambda: some_text(canvas), rng.choice((2, 3, 3, 4, 5, 6)))
    if rng.random() < 0.3:
        wanted[0] = words.number(rng)
    tints = colours.legible_on(canvas.paper)
    coloured = rng.random() < 0.5 and len(tints) >= len(wanted)
    tints = rng.sample(tints, len(wanted)) if coloured else []
    placed: list[tuple[str, Box]] = []
    inks = []
    for index, text in enumerate(wanted):
        if rng.random() < 0.3:
            canvas.other_family()
        face = canvas.fitting(text, 300, rng.randint(15, 30))
        box = canvas.place(face.width(text) + 2, face.height, 9)
        if box is None:
            continue
        ink = colours.shade(rng, tints[index]) if coloured else colours.readable(rng, canvas.paper)
        canvas.text(box[0], box[1], text, face, ink)
        placed.append((text, box))
        inks.append(tints[index] if coloured else "")
    if not placed:
        raise NoRoomError
    texts = [text for text, _ in placed]
    ask_places(quiz, placed)
    ask_numbers(quiz, texts)
    ask_words(canvas, quiz, texts)
    quiz.add("count/things", len(texts), things="words" if all(text.isalpha() for text in texts) else "pieces of text")
    for text, tint in zip(texts, inks, strict=True):
        if tint:
            quiz.add("reading/coloured", text, colour=tint)
            quiz.add("attribute/text colour", tint, word=text)
    rows = sorted(placed, key=lambda item: item[1][1])
    if all(low[1][1] > high[1][3] for high, low in pairwise(rows)):
        ask_transcript(quiz, [text for text, _ in rows])
    quiz.add("caption/picture", f"{len(texts)} pieces of text")


def panels(canvas: Canvas, quiz: Quiz) -> None:
    """Signs: coloured panels, each with a text."""
    rng = canvas.rng
    palette = colours.visible_on(canvas.paper)
    count = rng.choice((1, 2, 2, 3, 3, 4))
    name = rng.choice(("box", "sign", "panel"))
    tints = rng.sample(palette, count)
    wanted = words.distinct(lambda: words.number(rng) if rng.random() < 0.35 else some_text(canvas), count)
    shown: list[tuple[str, str, Box]] = []
    for tint, text in zip(tints, wanted, strict=True):
        face = canvas.fitting(text, 250, rng.randint(16, 30))
        width = min(300, face.width(text) + rng.randint(14, 40))
        box = canvas.place(width, face.height + rng.randint(12, 44), 8)
        if box is None:
            continue
        rgb = canvas.panel(box, tint, "panel", rng.choice((0, 0, 8)))
        canvas.centred(box, text, face, colours.readable(rng, rgb) if rng.random() < 0.4 else colours.plain_ink(rgb))
        shown.append((tint, text, box))
    if not shown:
        raise NoRoomError
    texts = [text for _, text, _ in shown]
    for tint, text, _ in shown:
        call = name if len(shown) == 1 and quiz.coin() else f"{tint} {name}"
        quiz.add("reading/panel number" if text.isdigit() else "reading/panel", text, panel=call)
        quiz.add("attribute/panel colour", tint, panel=name, word=text)
    if len(shown) == 1:
        quiz.add("reading/text", texts[0])
        quiz.add("attribute/colour", shown[0][0], thing=name)
    ask_places(quiz, [(text, box) for _, text, box in shown])
    ask_numbers(quiz, texts)
    ask_words(canvas, quiz, texts)
    quiz.add("count/things", len(shown), things=name + ("es" if name == "box" else "s"))
    right = quiz.coin()
    absent = [tint for tint in palette if tint not in tints]
    quiz.add(
        "existence/thing", "yes" if right else "no", a_thing=an(f"{rng.choice(tints if right else absent)} {name}")
    )
    for (tint, _, a), (other, _, b) in pairwise(shown):
        across = min(abs(a[2] - b[0]), abs(b[2] - a[0])) if (a[2] < b[0] or b[2] < a[0]) else 0
        if across or a[3] < b[1] or b[3] < a[1]:
            true = ("left" if a[0] < b[0] else "right") if across else ("above" if a[1] < b[1] else "below")
            group = "relation/which side" if across else "relation/which height"
            quiz.add(group, true, thing=f"{tint} {name}", other=f"{other} {name}")
    quiz.add("caption/picture", f"{len(shown)} {'sign' if len(shown) == 1 else 'signs'} with text")


def lines(canvas: Canvas, quiz: Quiz) -> None:
    """Lines of text, as on a page or a poster."""
    rng = canvas.rng
    face = canvas.face(rng.randint(15, 26))
    count = rng.randint(1, 6)
    width = SIZE - 24
    texts: list[str] = []
    seen: set[str] = set()
    while len(texts) < count:
        line: list[str] = []
        for _ in range(rng.randint(1, 5)):
            word = words.word(rng, canvas.split) if rng.random() < 0.88 else words.number(rng)
            if word.lower() not in seen and face.width(" ".join([*line, word])) <= width:
                line.append(word)
                seen.add(word.lower())
        if line:
            texts.append(" ".join(line))
    pitch = face.height + rng.randint(3, 16)
    y = rng.randint(8, max(8, SIZE - 8 - pitch * count))
    middle = rng.random() < 0.3
    stairs = (SIZE - 10 - max(face.width(text) for text in texts)) // count if canvas.unseen() else 0
    x = 8 if stairs else rng.randint(8, max(8, SIZE - 10 - max(face.width(text) for text in texts)))
    ink = colours.readable(rng, canvas.paper)
    for index, text in enumerate(texts):
        if middle and not stairs:
            canvas.centred((0, y + index * pitch, SIZE, y + index * pitch + face.height), text, face, ink)
        else:
            canvas.text(x + index * stairs, y + index * pitch, text, face, ink)
    for index, text in enumerate(texts):
        if count > 1:
            quiz.add("reading/line", text, nth=NTH[index])
            if text[0].isalpha():
                quiz.add("reading/letter", text[0], nth=NTH[index])
        for at, word in enumerate(text.split()):
            quiz.add("reading/word of line", word, nth=NTH[at], nth_line=NTH[index])
        for word, following in pairwise(text.split()):
            quiz.add("reading/next word", following, word=word)
    if count == 1:
        quiz.add("reading/text", texts[0])
    else:
        quiz.add("reading/line", texts[-1], nth="last")
    ask_transcript(quiz, texts)
    ask_words(canvas, quiz, " ".join(texts).split())
    quiz.add("count/things", count, things="lines")
    quiz.add("caption/picture", f"{count} {'line' if count == 1 else 'lines'} of text")


def labelled_shapes(canvas: Canvas, quiz: Quiz) -> None:
    """Shapes with a word below or above each."""
    rng, palette = canvas.rng, colours.visible_on(canvas.paper)
    below = rng.random() < 0.6
    texts = words.distinct(
        lambda: words.word(rng, canvas.split) if rng.random() < 0.7 else words.number(rng), rng.randint(2, 4)
    )
    things: list[Thing] = []
    written: list[str] = []
    for text in texts:
        face = canvas.fitting(text, 140, rng.randint(15, 24))
        radius = rng.randint(18, 36)
        width = max(face.width(text), 2 * radius + 1)
        box = canvas.place(width, 2 * radius + 5 + face.height, 24)
        if box is None:
            continue
        x = (box[0] + box[2]) // 2
        y = box[1] + radius if below else box[3] - radius - 1
        thing = Thing(rng.choice(NAMED_SHAPES), rng.choice(palette), x, y, radius)
        canvas.shape(thing.kind, thing.colour, x, y, radius)
        top = box[3] - face.height if below else box[1]
        canvas.centred((box[0], top, box[2], top + face.height), text, face, colours.readable(rng, canvas.paper))
        things.append(thing)
        written.append(text)
    for thing, text in zip(things, written, strict=True):
        name = called(quiz, thing, things)
        if name:
            quiz.add("reading/near", text, side=rng.choice(("below", "under")) if below else "above", thing=name)
        quiz.add("relation/word", thing.name, side="above" if below else rng.choice(("below", "under")), word=text)
    ask_words(canvas, quiz, written)
    ask_numbers(quiz, written)
    ask_existence(canvas, quiz, things, palette)
    ask_attribute(canvas, quiz, things, palette)
    ask_relation(canvas, quiz, things)
    ask_count(canvas, quiz, things)
    quiz.add("caption/picture", f"{len(things)} shapes with text")

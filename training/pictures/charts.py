"""Bar, line and pie charts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import ImageDraw

from training.pictures import colours, words
from training.pictures.canvas import Canvas, NoRoomError
from training.pictures.colours import SIZE
from training.pictures.phrases import NTH
from training.pictures.quiz import Quiz

TITLE_WORDS = words.listed(
    "Sales Visits Rain Scores Costs Orders Profit Users Votes Guests Water Energy Books Goals Steps Income Wind Trips"
)


@dataclass
class Data:
    labels: list[str]
    values: list[int]
    title: str
    step: int  # of the axis; 0 when the values are printed


def labels_for(canvas: Canvas, count: int, longest: int) -> list[str]:
    rng = canvas.rng
    draw = rng.random()
    if draw < 0.25:
        start = rng.randrange(12)
        return [words.MONTHS[(start + index) % 12] for index in range(count)]
    if draw < 0.35:
        start = rng.randrange(7)
        return [words.DAYS[(start + index) % 7] for index in range(count)]
    if draw < 0.45:
        start = rng.randint(1990, 2028 - count)
        return [str(start + index) for index in range(count)]
    if draw < 0.55:
        return list(rng.choice(("ABCDEFGH", "STUVWXYZ", "KLMNOPQR"))[:count])

    def short() -> str:
        while True:
            pool = rng.choice((words.EVERYDAY, words.NAMES, words.CITIES, words.GOODS))
            word = words.pick(rng, canvas.split, pool) if rng.random() < 0.75 else words.invented(rng)
            if len(word) <= longest:
                return word.capitalize()

    return words.distinct(short, count)


def make_data(canvas: Canvas, count: int, longest: int) -> Data:
    rng = canvas.rng
    title = rng.choice(
        (
            rng.choice(TITLE_WORDS),
            f"{rng.choice(TITLE_WORDS)} {rng.randint(1990, 2029)}",
            f"{rng.choice(TITLE_WORDS)} in {words.pick(rng, canvas.split, words.CITIES)}",
        )
    )
    if rng.random() < 0.35:
        title = words.word(rng, canvas.split)
    if rng.random() < 0.65:
        values, step = rng.sample(range(3, 100), count), 0
    else:
        step = rng.choice((1, 2, 5, 10, 20))
        values = [step * value for value in rng.sample(range(1, 9), count)]
    return Data(labels_for(canvas, count, longest), values, title, step)


def ask(canvas: Canvas, quiz: Quiz, data: Data, bar: str, titled: bool) -> None:
    rng = canvas.rng
    pairs = list(zip(data.labels, data.values, strict=True))
    for label, value in pairs:
        quiz.add("chart/value", value, word=label)
        quiz.add("chart/which", label, value=value, bar=bar)
    for most, chosen in ((("highest", "largest"), max), (("lowest", "smallest"), min)):
        label, value = chosen(pairs, key=lambda pair: pair[1])
        quiz.add("chart/extreme", label, most=rng.choice(most), bar=bar)
        quiz.add("chart/extreme value", value, most=rng.choice(most))
    if titled:
        quiz.add("chart/title", data.title)
    for _ in range(2):
        (a, x), (b, y) = rng.sample(pairs, 2)
        higher = quiz.coin()
        quiz.add("chart/compare", a if (x > y) == higher else b, more="higher" if higher else "lower", word=a, other=b)
    for index, label in enumerate(data.labels[: len(NTH)]):
        quiz.add("chart/place", label, nth=NTH[index], bar=bar)
    quiz.add("chart/place", data.labels[-1], nth="last", bar=bar)
    quiz.add("count/things", len(pairs), things=bar + "s")
    there = quiz.coin()
    other = labels_for(canvas, 3, 8)[0]
    word = rng.choice(data.labels) if there else other
    if there or other.lower() not in " ".join([*data.labels, data.title]).lower():
        quiz.add("existence/word", "yes" if there else "no", word=word)


def ask_colours(quiz: Quiz, data: Data, tints: list[str], bar: str) -> None:
    for label, tint in zip(data.labels, tints, strict=True):
        quiz.add("attribute/bar colour", tint, bar=bar, word=label)
        if tints.count(tint) == 1:
            quiz.add("chart/colour", label, colour=tint, bar=bar)


def header(canvas: Canvas, data: Data) -> int:
    """Draws the title, or not; where the chart may begin."""
    if canvas.rng.random() < 0.2:
        data.title = ""
        return 10
    face = canvas.fitting(data.title, 300, canvas.rng.randint(16, 22))
    canvas.centred((0, 6, SIZE, 6 + face.height), data.title, face, colours.readable(canvas.rng, canvas.paper))
    return 12 + face.height


def axis(canvas: Canvas, data: Data, box: tuple[int, int, int, int], upright: bool, ink: colours.RGB) -> int:
    """Axis and grid; the value at the end of the box."""
    end = (max(data.values) // data.step + 1) * data.step if data.step else round(max(data.values) * 1.15)
    left, top, right, bottom = box
    canvas.draw.line((left, bottom, right, bottom) if upright else (left, top, left, bottom), ink, 2)
    if not data.step:
        return end
    face = canvas.face(14, False)
    pale = tuple((a + b) // 2 for a, b in zip(ink, canvas.paper, strict=True))
    pale = tuple((a + b) // 2 for a, b in zip(pale, canvas.paper, strict=True))
    for tick in range(0, end + 1, data.step):
        if upright:
            y = bottom - round(tick / end * (bottom - top))
            canvas.draw.line((left, y, right, y), ink if tick == 0 else pale, 1)
            canvas.right(left - 4, y - face.height / 2, str(tick), face, ink)
        else:
            x = left + round(tick / end * (right - left))
            canvas.draw.line((x, top, x, bottom), ink if tick == 0 else pale, 1)
            canvas.centred((x - 20, bottom + 2, x + 20, bottom + 2 + face.height), str(tick), face, ink)
    return end


def ink_for(canvas: Canvas) -> colours.RGB:
    return (20, 20, 20) if colours.luminance(canvas.paper) > 125 else (245, 245, 245)


def bar_tints(canvas: Canvas, count: int) -> list[str]:
    """A colour per bar, or one for all."""
    palette = colours.visible_on(canvas.paper)
    many = canvas.rng.random() < 0.6
    return canvas.rng.sample(palette, count) if many else [canvas.rng.choice(palette)] * count


def ask_bars(canvas: Canvas, quiz: Quiz, data: Data, tints: list[str]) -> None:
    ask(canvas, quiz, data, "bar", bool(data.title))
    if len(set(tints)) > 1:
        ask_colours(quiz, data, tints, "bar")
    else:
        quiz.add("attribute/colour", tints[0], thing="first bar")
    quiz.add("caption/picture", f"a bar chart with {len(tints)} bars")


def bars(canvas: Canvas, quiz: Quiz) -> None:
    rng = canvas.rng
    data = make_data(canvas, rng.randint(3, 6), 7)
    count = len(data.labels)
    top, ink = header(canvas, data) + 18, ink_for(canvas)
    box = (38 if data.step else 14, top, SIZE - 12, SIZE - 34)
    end = axis(canvas, data, box, True, ink)
    room = (box[2] - box[0]) / count
    face = min((canvas.fitting(label, int(room - 4), 18, 13, False) for label in data.labels), key=lambda f: f.size)
    if max(face.width(label) for label in data.labels) > room + 4:
        raise NoRoomError
    numbers = canvas.face(rng.randint(15, 18))
    tints = bar_tints(canvas, count)
    width = room * rng.uniform(0.5, 0.8)
    for index, (label, value) in enumerate(zip(data.labels, data.values, strict=True)):
        middle = box[0] + room * (index + 0.5)
        y = box[3] - round(value / end * (box[3] - box[1]))
        bar = (round(middle - width / 2), y, round(middle + width / 2), box[3])
        canvas.panel(bar, tints[index], "bar")
        if not data.step:
            canvas.centred((bar[0], y - numbers.height - 2, bar[2], y - 2), str(value), numbers, ink)
        canvas.centred((bar[0], box[3] + 5, bar[2], box[3] + 5 + face.height), label, face, ink)
    ask_bars(canvas, quiz, data, tints)


def lying_bars(canvas: Canvas, quiz: Quiz) -> None:
    rng = canvas.rng
    data = make_data(canvas, rng.randint(3, 6), 10)
    count = len(data.labels)
    top, ink = header(canvas, data) + 4, ink_for(canvas)
    face = canvas.face(rng.randint(15, 18), False)
    left = max(face.width(label) for label in data.labels) + 14
    box = (left, top, SIZE - (20 if data.step else 40), SIZE - (26 if data.step else 12))
    end = axis(canvas, data, box, False, ink)
    end = end if data.step else max(data.values)
    room = (box[3] - box[1]) / count
    tints = bar_tints(canvas, count)
    height = room * rng.uniform(0.5, 0.8)
    for index, (label, value) in enumerate(zip(data.labels, data.values, strict=True)):
        middle = box[1] + room * (index + 0.5)
        bar = (
            box[0] + 1,
            round(middle - height / 2),
            box[0] + 1 + round(value / end * (box[2] - box[0])),
            round(middle + height / 2),
        )
        canvas.panel(bar, tints[index], "bar")
        canvas.right(box[0] - 6, middle - face.height / 2, label, face, ink)
        if not data.step:
            canvas.text(bar[2] + 5, middle - face.height / 2, str(value), face, ink)
    ask_bars(canvas, quiz, data, tints)


def line(canvas: Canvas, quiz: Quiz) -> None:
    rng = canvas.rng
    data = make_data(canvas, rng.randint(3, 6), 6)
    count = len(data.labels)
    top, ink = header(canvas, data) + 18, ink_for(canvas)
    box = (38 if data.step else 14, top, SIZE - 12, SIZE - 34)
    end = axis(canvas, data, box, True, ink)
    room = (box[2] - box[0]) / count
    face = min((canvas.fitting(label, int(room - 4), 18, 13, False) for label in data.labels), key=lambda f: f.size)
    if max(face.width(label) for label in data.labels) > room + 4:
        raise NoRoomError
    tint = rng.choice(colours.visible_on(canvas.paper))
    rgb = colours.shade(rng, tint)
    points = [
        (round(box[0] + room * (index + 0.5)), box[3] - round(value / end * (box[3] - box[1])))
        for index, value in enumerate(data.values)
    ]
    canvas.draw.line(points, rgb, rng.randint(2, 4), joint="curve")
    numbers = canvas.face(rng.randint(15, 18))
    for index, ((x, y), label, value) in enumerate(zip(points, data.labels, data.values, strict=True)):
        canvas.draw.ellipse((x - 4, y - 4, x + 4, y + 4), rgb)
        canvas.shapes.append(("marker", tint, x - 4, y - 4, x + 5, y + 5))
        if not data.step:
            around = data.values[max(0, index - 1) : index + 2]
            under = value == min(around) and y + 8 + numbers.height < box[3]
            top = y + 7 if under else y - numbers.height - 6
            canvas.centred((x - 20, top, x + 20, top + numbers.height), str(value), numbers, ink)
        canvas.centred((x - 20, box[3] + 5, x + 20, box[3] + 5 + face.height), label, face, ink)
    ask(canvas, quiz, data, "point", bool(data.title))
    for _ in range(2):
        at = rng.randrange(count - 1)
        trend = "up" if data.values[at] < data.values[at + 1] else "down"
        quiz.add("chart/trend", trend, word=data.labels[at], other=data.labels[at + 1])
    quiz.add("attribute/colour", tint, thing="line")
    quiz.add("caption/picture", f"a line chart with {count} points")


def pie(canvas: Canvas, quiz: Quiz) -> None:
    rng = canvas.rng
    count = rng.randint(2, 5)
    data = make_data(canvas, count, 8)
    while True:
        cuts = sorted(rng.sample(range(1, 100), count - 1))
        data.values = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
        if min(data.values) >= 8 and len(set(data.values)) == count:
            break
    top, ink = header(canvas, data), ink_for(canvas)
    tints = rng.sample(colours.visible_on(canvas.paper), count)
    face = canvas.fitting(max(data.labels, key=len), 88, 16, 13, False)
    numbers = canvas.face(rng.randint(15, 18), False)
    radius = rng.randint(84, 92)
    centre = (radius + 10, min(SIZE - radius - 8, (top + SIZE) // 2))
    angle = rng.uniform(-120, -60)
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    scale = 2
    layer = canvas.image.crop((0, box[1], SIZE, box[3] + 1)).resize((SIZE * scale, (2 * radius + 1) * scale))
    draw = ImageDraw.Draw(layer)
    shades = [colours.shade(rng, tint) for tint in tints]
    start = angle
    middles = []
    for rgb, value in zip(shades, data.values, strict=True):
        draw.pieslice((box[0] * scale, 0, box[2] * scale, 2 * radius * scale), start, start + 3.6 * value, rgb)
        middles.append(start + 1.8 * value)
        start += 3.6 * value
    canvas.image.paste(layer.reduce(scale), (0, box[1]))
    in_legend = rng.random() < 0.4
    pitch = 44 if in_legend else 30
    y = max(top + 6, min(centre[1] - count * pitch // 2, SIZE - count * pitch))
    for index, (label, value) in enumerate(zip(data.labels, data.values, strict=True)):
        turn = math.radians(middles[index])
        x = centre[0] + round(radius * 0.66 * math.cos(turn))
        at = centre[1] + round(radius * 0.66 * math.sin(turn))
        canvas.shapes.append(("slice", tints[index], x - 14, at - 12, x + 14, at + 12))
        row = y + index * pitch
        canvas.panel((210, row, 224, row + 14), tints[index], "slice")
        canvas.text(229, row + 7 - face.height / 2, label, face, ink)
        if in_legend:
            canvas.text(229, row + 7 + face.height / 2 - 1, f"{value}%", face, ink)
        else:
            canvas.centred((x - 20, at - 10, x + 20, at + 10), f"{value}%", numbers, colours.plain_ink(shades[index]))
    ask_pie(canvas, quiz, data, tints)


def ask_pie(canvas: Canvas, quiz: Quiz, data: Data, tints: list[str]) -> None:
    rng = canvas.rng
    pairs = list(zip(data.labels, data.values, strict=True))
    for label, value in pairs:
        quiz.add("chart/share", f"{value}%", word=label)
        quiz.add("chart/which", label, value=f"{value}%", bar="slice")
    highest = quiz.coin()
    label, value = (max if highest else min)(pairs, key=lambda pair: pair[1])
    quiz.add("chart/extreme", label, most="largest" if highest else "smallest", bar="slice")
    (a, x), (b, y) = rng.sample(pairs, 2)
    larger = quiz.coin()
    quiz.add("chart/compare", a if (x > y) == larger else b, more="larger" if larger else "smaller", word=a, other=b)
    if data.title:
        quiz.add("chart/title", data.title)
    quiz.add("count/things", len(pairs), things="slices")
    ask_colours(quiz, data, tints, "slice")
    there = quiz.coin()
    word = rng.choice(data.labels) if there else labels_for(canvas, 2, 8)[0]
    if there or word.lower() not in " ".join([*data.labels, data.title]).lower():
        quiz.add("existence/word", "yes" if there else "no", word=word)
    quiz.add("caption/picture", f"a pie chart with {len(pairs)} slices")

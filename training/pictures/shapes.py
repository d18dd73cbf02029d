"""Coloured shapes: scattered, counted, in a grid, in and around a frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from training.pictures import colours
from training.pictures.canvas import NAMED_SHAPES, Canvas
from training.pictures.colours import SIZE
from training.pictures.phrases import an
from training.pictures.quiz import Quiz


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


def plural(kind: str) -> str:
    return kind + ("es" if kind == "cross" else "s")


def draw_things(canvas: Canvas, wanted: list[tuple[str, str]], smallest: int = 16, largest: int = 42) -> list[Thing]:
    """Shapes at free places; those that find none are left out."""
    things = []
    largest = min(largest, 130 // max(3, len(wanted)) + 18)
    for kind, colour in wanted:
        radius = canvas.rng.randint(smallest, largest)
        box = canvas.place(2 * radius + 1, 2 * radius + 1)
        if box is None:
            box = canvas.place(2 * smallest + 1, 2 * smallest + 1)
            radius = smallest
        if box is not None:
            things.append(Thing(kind, colour, box[0] + radius, box[1] + radius, radius))
            canvas.shape(kind, colour, *(things[-1].x, things[-1].y, radius))
    return things


def called(quiz: Quiz, thing: Thing, things: list[Thing]) -> str | None:
    """A name that only this shape has."""
    if sum(other.name == thing.name for other in things) > 1:
        return None
    if sum(other.kind == thing.kind for other in things) == 1 and quiz.coin():
        return thing.kind
    return thing.name


def ask_existence(canvas: Canvas, quiz: Quiz, things: list[Thing], palette: list[str]) -> None:
    rng = canvas.rng
    for _ in range(2):
        there = rng.choice(things)
        if quiz.coin():
            quiz.add("existence/thing", "yes", a_thing=an(there.name if quiz.coin() else there.kind))
            continue
        # What is not there, with a colour or a shape that is
        near = [(kind, there.colour) for kind in NAMED_SHAPES] + [(there.kind, colour) for colour in palette]
        absent = [f"{c} {k}" for k, c in near if all((t.kind, t.colour) != (k, c) for t in things)]
        kinds = [kind for kind in NAMED_SHAPES if all(thing.kind != kind for thing in things)]
        if not (absent or kinds):
            continue
        name = rng.choice(kinds) if kinds and (quiz.coin() or not absent) else rng.choice(absent)
        quiz.add("existence/thing", "no", a_thing=an(name))
    used = sorted({thing.colour for thing in things})
    unused = [colour for colour in palette if colour not in used]
    if unused and not quiz.coin():
        colour = rng.choice(unused)
        quiz.add("existence/colour", "no", colour=colour, a_colour=an(colour))
    elif unused:
        colour = rng.choice(used)
        quiz.add("existence/colour", "yes", colour=colour, a_colour=an(colour))


def ask_count(canvas: Canvas, quiz: Quiz, things: list[Thing], target: tuple[str, str] | None = None) -> None:
    """target: the kind and colour (one of them can be empty) that was counted out; otherwise something that is there,
    or nearly."""
    rng = canvas.rng
    if target is None:
        thing = rng.choice(things)
        target = rng.choice(((thing.kind, ""), ("", thing.colour), ("", ""), (rng.choice(NAMED_SHAPES), thing.colour)))
    kind, colour = target
    count = sum(kind in ("", thing.kind) and colour in ("", thing.colour) for thing in things)
    quiz.add("count/things", count, things=f"{colour} {plural(kind or 'shape')}".strip())


def ask_attribute(canvas: Canvas, quiz: Quiz, things: list[Thing], palette: list[str]) -> None:
    rng = canvas.rng
    for thing in things:
        if sum(other.kind == thing.kind for other in things) == 1:
            quiz.add("attribute/colour", thing.colour, thing=thing.kind)
            if rng.random() < 0.3:
                right = quiz.coin()
                colour = thing.colour if right else rng.choice([c for c in palette if c != thing.colour])
                quiz.add("attribute/is colour", "yes" if right else "no", thing=thing.kind, colour=colour)
        if sum(other.colour == thing.colour for other in things) == 1:
            quiz.add("attribute/shape", thing.kind, colour=thing.colour)
    ordered = sorted(things, key=lambda thing: thing.radius)
    for extreme, following, names in ((-1, -2, ("biggest", "largest")), (0, 1, ("smallest",))):
        if len(things) > 2:
            a, b = ordered[extreme].radius, ordered[following].radius
            if max(a, b) > 1.25 * min(a, b):
                group = rng.choice(("attribute/biggest", "attribute/biggest colour"))
                answer = ordered[extreme].kind if group == "attribute/biggest" else ordered[extreme].colour
                quiz.add(group, answer, most=rng.choice(names))
    pairs = [pair for pair in combinations(ordered, 2) if pair[1].radius > 1.35 * pair[0].radius]
    if pairs:
        pair = rng.choice(pairs)
        names = [called(quiz, thing, things) for thing in pair]
        if None not in names:
            bigger = quiz.coin()
            first, second = rng.sample(names, 2)
            quiz.add(
                "attribute/bigger", names[bigger], more="bigger" if bigger else "smaller", thing=first, other=second
            )


def ask_relation(canvas: Canvas, quiz: Quiz, things: list[Thing]) -> None:
    rng = canvas.rng
    pairs = list(combinations(things, 2))
    for first, second in rng.sample(pairs, min(4, len(pairs))):
        if quiz.coin():
            first, second = second, first
        a, b = called(quiz, first, things), called(quiz, second, things)
        if a is None or b is None:
            continue
        dx, dy = first.x - second.x, first.y - second.y
        across = abs(dx) > 44 and (abs(dy) <= 44 or quiz.coin())
        if not across and abs(dy) <= 44:
            continue
        sides = ("left", "right") if across else ("above", "below")
        true = sides[(dx if across else dy) > 0]
        draw = rng.random()
        if draw < 0.35:
            shown = true if quiz.coin() else sides[true == sides[0]]
            side = rng.choice((f"{shown} of", f"to the {shown} of")) if across else shown
            quiz.add("relation/is", "yes" if shown == true else "no", thing=a, side=side, other=b)
        elif draw < 0.65:
            quiz.add(f"relation/which {'side' if across else 'height'}", true, thing=a, other=b)
        else:
            direction = rng.choice(("left", "right") if across else ("up", "down"))
            near_start = direction in ("left", "up")
            answer = a if ((dx if across else dy) < 0) == near_start else b
            quiz.add("relation/further", answer, direction=direction, thing=a, other=b)


def ask_caption(quiz: Quiz, things: list[Thing]) -> None:
    if len(things) <= 3:
        names = [an(thing.name) for thing in sorted(things, key=lambda thing: thing.x)]
        text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        quiz.add("caption/picture", text)
    else:
        quiz.add("caption/picture", f"{len(things)} shapes")


def scatter(canvas: Canvas, quiz: Quiz) -> None:
    rng, palette = canvas.rng, colours.visible_on(canvas.paper)
    kinds, tints = rng.sample(NAMED_SHAPES, rng.randint(3, 6)), rng.sample(palette, rng.randint(3, 6))
    wanted = [(rng.choice(kinds), rng.choice(tints)) for _ in range(rng.randint(2, 7))]
    things = draw_things(canvas, wanted)
    ask_existence(canvas, quiz, things, palette)
    ask_count(canvas, quiz, things)
    ask_attribute(canvas, quiz, things, palette)
    ask_relation(canvas, quiz, things)
    ask_caption(quiz, things)


def counting(canvas: Canvas, quiz: Quiz) -> None:
    """As many of one sort as was thrown, among others that share its shape or its colour."""
    rng, palette = canvas.rng, colours.visible_on(canvas.paper)
    kind, colour = rng.choice(NAMED_SHAPES), rng.choice(palette)
    other_kinds = [other for other in NAMED_SHAPES if other != kind]
    other_tints = [tint for tint in palette if tint != colour]
    count, others = rng.randint(0, 6), rng.randint(0, 4)
    by = rng.choice(("kind", "colour", "both"))
    wanted = []
    for index in range(count + (others or count == 0)):
        same = index < count
        if by == "kind":
            wanted.append((kind if same else rng.choice(other_kinds), rng.choice(palette)))
        elif by == "colour":
            wanted.append((rng.choice(NAMED_SHAPES), colour if same else rng.choice(other_tints)))
        elif same:
            wanted.append((kind, colour))
        else:
            wanted.append((kind, rng.choice(other_tints)) if quiz.coin() else (rng.choice(other_kinds), colour))
    rng.shuffle(wanted)
    things = draw_things(canvas, wanted, largest=30)
    target = ("" if by == "colour" else kind, "" if by == "kind" else colour)
    ask_count(canvas, quiz, things, target)
    ask_count(canvas, quiz, things, ("", ""))
    ask_existence(canvas, quiz, things, palette)
    ask_attribute(canvas, quiz, things, palette)
    ask_relation(canvas, quiz, things)
    ask_caption(quiz, things)


_PLACES = {
    (2, 2): {(0, 0): "top left", (0, 1): "top right", (1, 0): "bottom left", (1, 1): "bottom right"},
    (3, 3): {
        (0, 0): "top left corner",
        (0, 2): "top right corner",
        (2, 0): "bottom left corner",
        (2, 2): "bottom right corner",
        (1, 1): "middle",
    },
}


def grid(canvas: Canvas, quiz: Quiz) -> None:
    rng, palette = canvas.rng, colours.visible_on(canvas.paper)
    rows, columns = rng.choice(((2, 2), (2, 3), (3, 2), (3, 3)))
    cell = rng.randint(70, min(100, 300 // max(rows, columns)))
    left = rng.randint(8, SIZE - 8 - columns * cell)
    top = rng.randint(8, SIZE - 8 - rows * cell)
    if rng.random() < 0.7:
        ink = colours.readable(rng, canvas.paper)
        for row in range(rows + 1):
            canvas.draw.line((left, top + row * cell, left + columns * cell, top + row * cell), ink, 2)
        for column in range(columns + 1):
            canvas.draw.line((left + column * cell, top, left + column * cell, top + rows * cell), ink, 2)
    at: dict[tuple[int, int], Thing] = {}
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * cell + cell // 2, top + row * cell + cell // 2
            thing = Thing(rng.choice(NAMED_SHAPES), rng.choice(palette), x, y, rng.randint(cell // 4, cell * 2 // 5))
            canvas.shape(thing.kind, thing.colour, x, y, thing.radius)
            at[row, column] = thing
    things = list(at.values())
    sides = {"right of": (0, 1), "left of": (0, -1), "above": (-1, 0), "below": (1, 0), "under": (1, 0)}
    for (row, column), thing in rng.sample(list(at.items()), min(5, len(at))):
        name = called(quiz, thing, things)
        near = [(side, at[row + dy, column + dx]) for side, (dy, dx) in sides.items() if (row + dy, column + dx) in at]
        if name and near:
            side, other = rng.choice(near)
            side = rng.choice((side, f"to the {side}")) if side.endswith("of") else side
            quiz.add("relation/neighbour", other.name, side=side, thing=name)
    for cell_at, place in _PLACES.get((rows, columns), {}).items():
        quiz.add("relation/place", at[cell_at].name, place=place)
    quiz.add("count/things", rows, things="rows")
    quiz.add("count/things", columns, things="columns")
    ask_existence(canvas, quiz, things, palette)
    ask_attribute(canvas, quiz, things, palette)
    ask_relation(canvas, quiz, things)
    ask_count(canvas, quiz, things)


def framed(canvas: Canvas, quiz: Quiz) -> None:
    """One or two shapes inside a frame, others outside."""
    rng = canvas.rng
    palette = colours.visible_on(canvas.paper)
    side = rng.randint(110, 160)
    x, y = rng.randint(6, SIZE - 6 - side), rng.randint(6, SIZE - 6 - side)
    frame = (x, y, x + side, y + side)
    edge = rng.choice(palette)
    rgb = colours.shade(rng, edge)
    width = rng.randint(3, 6)
    if round_frame := rng.random() < 0.3:
        canvas.draw.ellipse(frame, None, rgb, width)
    else:
        canvas.draw.rectangle(frame, None, rgb, width)
    canvas.shapes.append(("frame", edge, *frame))
    kinds = rng.sample([kind for kind in NAMED_SHAPES if kind not in ("square", "circle", "ring")], 5)
    tints = [tint for tint in palette if tint != edge]
    inner = side // 5 if round_frame else 12
    inside = []
    for kind in kinds[: rng.choice((1, 1, 2))]:
        radius = rng.randint(14, 24)
        box = canvas.place(
            2 * radius + 1, 2 * radius + 1, 4, (x + inner, y + inner, x + side - inner, y + side - inner)
        )
        if box:
            inside.append(Thing(kind, rng.choice(tints), box[0] + radius, box[1] + radius, radius))
            canvas.shape(kind, inside[-1].colour, inside[-1].x, inside[-1].y, radius)
    canvas.taken = [frame]
    outside = draw_things(canvas, [(kind, rng.choice(tints)) for kind in kinds[2 : 2 + rng.randint(1, 3)]], 14, 30)
    things = inside + outside
    shown = rng.choice(("frame", f"{edge} frame"))
    if len(inside) == 1:
        quiz.add("relation/inside", inside[0].name, frame=shown)
    for _ in range(2):
        among = inside if quiz.coin() else outside
        if among:
            name = called(quiz, rng.choice(among), things)
            quiz.add("relation/is inside", "yes" if among is inside else "no", thing=name, frame=shown)
    quiz.add("attribute/colour", edge, thing="frame")
    quiz.add("count/things", len(inside), things=f"shapes inside the {shown}")
    quiz.add("count/things", len(outside), things=f"shapes outside the {shown}")
    ask_existence(canvas, quiz, things, tints)
    ask_attribute(canvas, quiz, things, tints)
    ask_relation(canvas, quiz, things)

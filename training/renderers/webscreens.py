# ruff: noqa: E501  lines of markup are left whole
"""Web pages that are looked at or used: dashboards, chats, settings, dialogs, posters, pictograms, shapes."""

from __future__ import annotations

from training.pictures import colours, words
from training.pictures.phrases import NTH, an
from training.renderers.webdocuments import FIELDS
from training.renderers.webpage import Page, css, row, text

EMOJI = {
    "cat": "🐈", "dog": "🐕", "horse": "🐎", "fish": "🐟", "bird": "🐦", "apple": "🍎", "banana": "🍌", "car": "🚗", "bus": "🚌",
    "bicycle": "🚲", "house": "🏠", "tree": "🌳", "flower": "🌷", "sun": "☀️", "moon": "🌙", "cloud": "☁️", "ball": "⚽", "book": "📖",
    "key": "🔑", "clock": "⏰", "phone": "📱", "cup": "☕", "cake": "🎂", "pizza": "🍕", "boat": "⛵", "plane": "✈️", "train": "🚆",
    "hat": "🎩", "shoe": "👞", "star": "⭐", "heart": "❤️", "guitar": "🎸", "cow": "🐄", "pig": "🐖", "elephant": "🐘", "umbrella": "☂️",
    "egg": "🥚", "bread": "🍞", "cheese": "🧀", "carrot": "🥕", "grapes": "🍇", "lemon": "🍋", "bell": "🔔", "camera": "📷",
}  # fmt: skip


def cards(page: Page) -> None:
    """A dashboard: numbers with their names."""
    rng = page.rng
    names = rng.sample(
        ("Visits", "Sales", "Users", "Orders", "Errors", "Tasks", "Mails", "Steps", "Votes", "Points"),
        rng.randint(2, 6),
    )
    values = [str(value) for value in rng.sample(range(3, 3000), len(names))]
    boxes = []
    for name, value in zip(names, values, strict=True):
        boxes.append(
            f'<div style="border:1px solid #8886;border-radius:{rng.choice((0, 6, 12))}px;padding:8px;background:#8882">'
            f'<div style="opacity:.8">{name}</div><div style="font-size:1.7em;font-weight:bold">{value}</div></div>'
        )
        page.quiz.add("chart/value", value, word=name)
        page.quiz.add("document/which field", name, word=value)
    page.add(
        f'<div style="display:grid;grid-template-columns:repeat({rng.choice((1, 2, 2, 3))},1fr);gap:8px">{"".join(boxes)}</div>'
    )
    pairs = sorted(zip(map(int, values), names, strict=True))
    page.quiz.add("chart/extreme", pairs[-1][1], most="highest", bar="number")
    page.quiz.add("chart/extreme", pairs[0][1], most="lowest", bar="number")
    page.quiz.add("reading/extreme number", pairs[-1][0], most="largest")
    page.quiz.add("reading/extreme number", pairs[0][0], most="smallest")
    page.quiz.add("count/things", len(names), things="boxes")


def chat(page: Page) -> None:
    rng = page.rng
    who = words.distinct(lambda: page.word(words.NAMES), 2)
    said = [(who[i % 2], " ".join(page.word() for _ in range(rng.randint(1, 3)))) for i in range(rng.randint(2, 5))]
    for i, (name, line) in enumerate(said):
        side = "flex-end" if i % 2 else "flex-start"
        page.add(
            f'<div style="display:flex;justify-content:{side}"><div style="background:#8883;border-radius:12px;padding:6px 10px;'
            f'margin:2px">{text(name, "font-weight:bold;font-size:.85em", "div")}{text(line, "white-space:nowrap", "div")}</div></div>'
        )
        page.quiz.add("document/field", line, field=f"message of {name}") if sum(
            n == name for n, _ in said
        ) == 1 else None
    page.quiz.add("interface/message", said[0][1]) if len(said) == 1 else None
    page.quiz.add("document/row", said[0][0], field="message", value=said[0][1])
    page.quiz.add("document/row", said[-1][0], field="message", value=said[-1][1])
    page.quiz.add("reading/line", said[0][0], nth="first")
    page.quiz.add("reading/line", said[-1][1], nth="last")
    page.quiz.add("count/things", len(said), things="messages")
    page.ask_words(" ".join(line for _, line in said).split())


def settings(page: Page) -> None:
    rng = page.rng
    title = rng.choice(("Settings", "Options", "Preferences", "Privacy", "Account"))
    names = words.distinct(lambda: page.word().capitalize() if rng.random() < 0.4 else rng.choice(
        ("Dark mode", "Sounds", "Updates", "Location", "Backup", "Sync", "Wifi", "Bluetooth", "Alerts", "Cookies", "Camera", "Music")
    ), rng.randint(2, 6))  # fmt: skip
    on = [page.quiz.coin() for _ in names]
    page.add(text(title, "font-size:1.3em", "h3"))
    switch, behind = rng.random() < 0.4, rng.random() < 0.4
    tint = css(colours.shade(rng, rng.choice(("green", "blue", "purple", "orange"))))
    for name, checked in zip(names, on, strict=True):
        kind = "checked" if checked else "unchecked"
        if switch:
            knob = f'<span style="position:absolute;top:2px;{"right" if checked else "left"}:2px;width:14px;height:14px;border-radius:7px;background:#fff"></span>'
            box = f'<span data-shape="{kind} gray" style="position:relative;display:inline-block;width:34px;height:18px;border-radius:9px;background:{tint if checked else "#999"}">{knob}</span>'
        else:
            box = f'<input type="checkbox" data-shape="{kind} gray" style="width:1em;height:1em;vertical-align:middle" {"checked" if checked else ""}>'
        page.add(row(name, box) if behind else f"<div>{box} {name}</div>")
        page.quiz.add("interface/checked", "yes" if checked else "no", word=name)
    for state, wanted in (("checked", True), ("not checked", False)):
        if on.count(wanted) == 1:
            page.quiz.add("interface/which checked", names[on.index(wanted)], state=state)
        page.quiz.add("count/things", on.count(wanted), things=f"{'' if wanted else 'un'}checked boxes")
    page.quiz.add("interface/title", title)
    page.ask_words(names)


BUTTONS = (
    "OK",
    "Cancel",
    "Save",
    "Delete",
    "Send",
    "Close",
    "Next",
    "Back",
    "Apply",
    "Retry",
    "Help",
    "Yes",
    "No",
    "Open",
    "Print",
    "Skip",
    "Buy",
    "Login",
)


def dialog(page: Page) -> None:
    rng = page.rng
    title, message = page.word().capitalize(), f"{page.word().capitalize()} {page.word()} {page.word()}"
    labels = rng.sample(BUTTONS, rng.randint(1, 3))
    tints = rng.sample(("blue", "green", "red", "gray", "orange", "purple"), len(labels))
    page.add(text(title, "font-size:1.2em;border-bottom:1px solid #8888", "div"))
    page.add(text(message, "margin:14px 0;white-space:nowrap", "div"))
    boxes = []
    for label, tint in zip(labels, tints, strict=True):
        rgb = colours.shade(rng, tint)
        boxes.append(
            f'<span data-shape="button {tint}" style="background:{css(rgb)};color:{css(colours.plain_ink(rgb))};padding:5px 12px;'
            f'border-radius:{rng.choice((0, 4, 14))}px">{label}</span>'
        )
        page.quiz.add("interface/coloured button", label, colour=tint)
        page.quiz.add("attribute/panel colour", tint, panel="button", word=label)
    page.add(
        f'<div style="display:flex;gap:8px;justify-content:{rng.choice(("flex-end", "center", "space-between"))}">{"".join(boxes)}</div>'
    )
    if len(labels) == 1:
        page.quiz.add("interface/only button", labels[0])
    else:
        page.quiz.add("interface/button", labels[0], side="left")
        page.quiz.add("interface/button", labels[-1], side="right")
    page.quiz.add("interface/title", title)
    page.quiz.add("interface/message", message)
    page.quiz.add("count/things", len(labels), things="buttons")
    there = page.quiz.coin()
    other = rng.choice([button for button in BUTTONS if button not in labels])
    page.quiz.add(
        "existence/control", "yes" if there else "no", a_thing="a button", word=rng.choice(labels) if there else other
    )


def poster(page: Page) -> None:
    """One to three large words, mostly on a photograph."""
    rng = page.rng
    lines = words.distinct(page.word, rng.choice((1, 1, 2, 3)))
    page.photo = rng.random() < 0.7
    align = rng.choice(("center", "left", "right"))
    back = "background:#fffc;color:#111;" if rng.random() < 0.3 else ""
    for line in lines:
        size = rng.uniform(1.2, 3.6)
        page.add(text(line, f"font-size:{size:.2f}em;text-align:{align};line-height:1.15;{back}", "div"))
    if len(lines) == 1:
        for _ in range(3):
            page.quiz.add("reading/text", lines[0])
        page.quiz.add("transcribe/all", lines[0])
    else:
        page.quiz.add("reading/place", lines[0], place="top")
        page.quiz.add("reading/place", lines[-1], place="bottom")
        for index, line in enumerate(lines):
            page.quiz.add("reading/line", line, nth=NTH[index])
            page.quiz.add("transcribe/line", line, nth=NTH[index])
        page.quiz.add("transcribe/all", " ".join(lines))
    page.ask_words(lines)
    page.quiz.add("count/things", len(lines), things="lines")


def pictograms(page: Page) -> None:
    """Emoji in a grid."""
    rng = page.rng
    columns, rows = rng.randint(1, 3), rng.randint(1, 3)
    names = rng.sample(list(EMOJI), columns * rows)
    cells = "".join(
        f'<span data-shape="{name} -" style="font-size:{rng.uniform(1.8, 3):.2f}em;line-height:1.2">{EMOJI[name]}</span>'
        for name in names
    )
    page.add(f'<div style="display:grid;grid-template-columns:repeat({columns},1fr);text-align:center">{cells}</div>')
    quiz = page.quiz
    there = quiz.coin()
    for _ in range(3):
        name = rng.choice(names if there else [name for name in EMOJI if name not in names])
        quiz.add("existence/thing", "yes" if there else "no", a_thing=an(name))
        there = quiz.coin()
    if len(names) == 1:
        quiz.add("caption/picture", names[0])
    for i, name in enumerate(names):
        if i % columns + 1 < columns:
            quiz.add("relation/neighbour", names[i + 1], side="right of", thing=name)
            quiz.add("relation/neighbour", name, side="left of", thing=names[i + 1])
        if i + columns < len(names):
            quiz.add("relation/neighbour", names[i + columns], side="below", thing=name)
            quiz.add("relation/neighbour", name, side="above", thing=names[i + columns])
    if rows > 1 and columns > 1:
        for place, at in (("top left", 0), ("top right", columns - 1), ("bottom left", -columns), ("bottom right", -1)):
            quiz.add("relation/place", names[at], place=place)


SHAPES = {
    "circle": '<circle cx="50" cy="50" r="48"/>',
    "square": '<rect x="4" y="4" width="92" height="92"/>',
    "triangle": '<polygon points="50,3 98,95 2,95"/>',
    "diamond": '<polygon points="50,2 90,50 50,98 10,50"/>',
    "star": '<polygon points="50,2 62,38 98,38 69,60 80,96 50,74 20,96 31,60 2,38 38,38"/>',
    "cross": '<path d="M34 3h32v31h31v32H66v31H34V66H3V34h31z"/>',
    "heart": '<path d="M50 95C10 60 2 45 2 30 2 12 16 4 28 4c10 0 18 6 22 14C54 10 62 4 72 4c12 0 26 8 26 26 0 15-8 30-48 65z"/>',
}


def figures(page: Page) -> None:
    """Shapes of SVG in a row or a grid."""
    rng, quiz = page.rng, page.quiz
    count = rng.randint(1, 6)
    tints = [name for name in colours.COLOURS if name not in ("white", "black", "gray")]
    things = [(rng.choice(list(SHAPES)), rng.choice(tints)) for _ in range(count)]
    parts = []
    for kind, tint in things:
        size = rng.randint(44, 84)
        parts.append(
            f'<svg data-shape="{kind} {tint}" viewBox="0 0 100 100" width="{size}" height="{size}" style="margin:{rng.randint(2, 16)}px" '
            f'fill="{css(colours.shade(rng, tint))}">{SHAPES[kind]}</svg>'
        )
    page.add(
        f'<div style="display:flex;flex-wrap:wrap;max-width:{rng.choice((220, 300, 600))}px">{"".join(parts)}</div>'
    )
    quiz.add("count/things", count, things="shapes")
    kind, tint = rng.choice(list(SHAPES)), rng.choice(tints)
    quiz.add("count/things", sum(k == kind for k, _ in things), things=kind + ("es" if kind == "cross" else "s"))
    quiz.add("count/things", sum(t == things[0][1] for _, t in things), things=f"{things[0][1]} shapes")
    for k, t in things:
        if sum(k == other for other, _ in things) == 1:
            quiz.add("attribute/colour", t, thing=k)
        if sum(t == other for _, other in things) == 1:
            quiz.add("attribute/shape", k, colour=t)
    for _ in range(2):
        there = quiz.coin()
        k, t = rng.choice(things) if there else (kind, tint)
        if there or (k, t) not in things:
            quiz.add("existence/thing", "yes" if there else "no", a_thing=an(f"{t} {k}"))


def timetable(page: Page) -> None:
    """For tests alone: times before, places after, on lines of colour."""
    rng = page.rng
    places = words.distinct(lambda: page.word(words.CITIES), rng.randint(2, 6))
    times = sorted({words.time(rng) for _ in places} | {"23:59"})[: len(places)]
    places = places[: len(times)]
    page.add(
        text(
            rng.choice(("Departures", "Trains", "Buses")),
            "font-size:1.5em;background:#24a;color:#fff;padding:4px",
            "div",
        )
    )
    for time, place in zip(times, places, strict=True):
        page.add(
            f'<div style="background:#8882;margin:3px 0;padding:3px">{text(time, "font-weight:bold;margin-right:14px")}{text(place)}</div>'
        )
        page.quiz.add("document/cell", time, field="time", word=place)
        page.quiz.add("document/row", place, field="time", value=time)
    for index, place in enumerate(places[: len(NTH)]):
        page.quiz.add("document/nth", place, nth=NTH[index])
    page.quiz.add("count/things", len(places), things="rows")
    page.ask_words(places)


def profile(page: Page) -> None:
    """For tests alone: a card with a name and fields below it."""
    rng = page.rng
    name = page.name()
    fields = rng.sample(("City", "Company", "Phone", "Age", "Room"), 3)
    values = [FIELDS[each](page) for each in fields]
    page.add(f'<div style="text-align:center;border:2px solid #8888;border-radius:14px;padding:10px">'
             f'{text(name, "font-size:1.6em;font-weight:bold", "div")}'
             + "".join(text(f"{field}: {value}", "", "div") for field, value in zip(fields, values, strict=True)) + "</div>")  # fmt: skip
    for each, value in zip(fields, values, strict=True):
        page.quiz.add("document/field", value, field=each.lower())
    page.quiz.add("document/title", name)
    page.ask_words(name.split())


def login(page: Page) -> None:
    """For tests alone: two fields and a button."""
    rng = page.rng
    user, button = page.word(words.NAMES).lower(), rng.choice(BUTTONS)
    page.add(text(title := f"{page.word(words.EVERYDAY).capitalize()} login", "font-size:1.4em", "h3"))
    for label, value in (("User", user), ("Password", "*" * rng.randint(4, 8))):
        page.add(
            f'<div>{label}</div><div style="border:2px solid #8888;padding:3px 6px;margin-bottom:6px">{value}</div>'
        )
    page.add(f'<span data-shape="button green" style="background:#2a3;color:#fff;padding:6px 20px">{button}</span>')
    page.quiz.add("interface/field", user, field="User")
    page.quiz.add("interface/only button", button)
    page.quiz.add("document/title", title)
    page.quiz.add("attribute/panel colour", "green", panel="button", word=button)
    page.ask_words([user, button])

"""Receipts, forms, tables and tickets."""

from __future__ import annotations

from training.pictures import colours, words
from training.pictures.canvas import Canvas, NoRoomError
from training.pictures.colours import SIZE
from training.pictures.phrases import NTH
from training.pictures.quiz import Quiz

SHOP_KINDS = words.listed("Shop Market Store Cafe Bakery Deli Kitchen Foods Mart Bistro Bar Grill")
INK = (25, 25, 25)


def cents(text: str) -> int:
    return int(text.replace(".", ""))


def money(amount: int) -> str:
    return f"{amount // 100}.{amount % 100:02d}"


def sheet(canvas: Canvas, width: int) -> tuple[int, int]:
    """A sheet of paper; its left and right text margins."""
    rng = canvas.rng
    left = rng.randint(6, SIZE - 6 - width)
    tone = rng.randint(240, 255)
    paper = (tone, tone, tone - rng.choice((0, 0, 6, 14)))
    canvas.draw.rectangle((left, 4, left + width - 1, SIZE - 5), paper, (150, 150, 150) if rng.random() < 0.5 else None)
    canvas.paper = paper
    return left + 10, left + width - 10


def some_shop(canvas: Canvas) -> str:
    rng = canvas.rng
    pool = rng.choice((words.SURNAMES, words.CITIES, words.NAMES, words.EVERYDAY))
    word = words.pick(rng, canvas.split, pool).capitalize() if rng.random() < 0.7 else words.invented(rng).capitalize()
    text = rng.choice((f"{word} {rng.choice(SHOP_KINDS)}", f"{word} {rng.choice(SHOP_KINDS)}", word))
    return text.upper() if rng.random() < 0.3 else text


def rule(canvas: Canvas, left: int, right: int, y: int) -> None:
    if canvas.rng.random() < 0.5:
        canvas.draw.line((left, y, right, y), (110, 110, 110), 1)
    else:
        for x in range(left, right, 7):
            canvas.draw.line((x, y, x + 3, y), (110, 110, 110), 1)


def ask_list(canvas: Canvas, quiz: Quiz, entries: list[str], pool: list[str]) -> None:
    there = quiz.coin()
    word = canvas.rng.choice(entries) if there else words.pick(canvas.rng, canvas.split, pool)
    if there or word.lower() not in " ".join(entries).lower():
        quiz.add("existence/item", "yes" if there else "no", word=word)


def receipt(canvas: Canvas, quiz: Quiz) -> None:
    rng = canvas.rng
    left, right = sheet(canvas, rng.randint(200, 300))
    shop = some_shop(canvas)
    size = rng.randint(15, 20)
    face, strong = canvas.face(size, False), canvas.face(size + rng.choice((0, 2)), True)
    date, time = words.date(rng), words.time(rng) if rng.random() < 0.5 else ""
    number = str(rng.randint(100, 9999)) if rng.random() < 0.4 else ""
    numbered = rng.choice(("Table", "Receipt", "Order", "Bill"))
    goods = words.distinct(lambda: words.pick(rng, canvas.split, words.GOODS), rng.randint(2, 6))
    goods = [good.capitalize() for good in goods] if rng.random() < 0.6 else goods
    prices: list[str] = []
    while len(prices) < len(goods):
        price = words.price(rng)
        if cents(price) and price not in prices:
            prices.append(price)
    amounts = [rng.randint(1, 9) for _ in goods] if rng.random() < 0.3 else []
    total = rng.choice(("", "", "$")) + money(sum(map(cents, prices)))
    total_name = rng.choice(("Total", "TOTAL", "Total", "Sum", "To pay"))

    # (left, right, face); nothing on the right: centred; no face: a rule
    day = [(date, time, face)]
    shown = [f"{amounts[index]} {good}" if amounts else good for index, good in enumerate(goods)]
    items = [(good, price, face) for good, price in zip(shown, prices, strict=True)]
    if canvas.unseen():
        items = [(price, good, face) for good, price in zip(shown, prices, strict=True)]
    rows = [(shop, "", canvas.fitting(shop, right - left, rng.randint(size + 2, 26)))]
    at_end = rng.random() < 0.25
    rows += [] if at_end else day
    rows += [(numbered, number, face)] if number else []
    rows += [("", "", None), *items, ("", "", None), (total_name, total, strong)]
    if at_end:
        rows += day
    elif rng.random() < 0.3:
        rows.append((rng.choice(("Thank you", "Thanks", "Come again")), "", face))
    gap = rng.randint(1, 6)
    height = sum(gap + font.height if font else 9 for _, _, font in rows)
    y = rng.randint(8, SIZE - 10 - height) if height < SIZE - 18 else 8
    if height > SIZE - 12:
        raise NoRoomError
    lines = []
    for text, other, font in rows:
        if font is None:
            rule(canvas, left, right, y + 4)
            y += 9
            continue
        if font.width(f"{text}  {other}") > right - left:
            raise NoRoomError
        if other:
            canvas.text(left, y, text, font, INK)
            canvas.right(right, y, other, font, INK)
        else:
            canvas.centred((left, y, right, y + font.height), text, font, INK)
        lines.append(f"{text} {other}".strip())
        y += font.height + gap

    quiz.add("document/total", total)
    quiz.add("document/date", date)
    quiz.add("document/shop", shop)
    if time:
        quiz.add("document/time", time)
    if number:
        quiz.add("document/field", number, field=f"{numbered.lower()} number")
    for index, (good, price) in enumerate(zip(goods, prices, strict=True)):
        quiz.add("document/price", price, word=good.lower() if quiz.coin() else good)
        quiz.add("document/which price", good, value=price)
        quiz.add("document/nth", good, nth=NTH[index])
        if amounts:
            quiz.add("document/quantity", amounts[index], word=good)
    ordered = sorted(zip(map(cents, prices), goods, strict=True))
    quiz.add("document/extreme", ordered[-1][1])
    quiz.add("document/cheapest", ordered[0][1])
    if not amounts:
        quiz.add("count/things", len(goods), things="items")
    ask_list(canvas, quiz, goods, words.GOODS)
    quiz.add("caption/picture", f"a receipt from {shop}")
    ask_lines(quiz, lines)


def ask_lines(quiz: Quiz, lines: list[str]) -> None:
    for nth, line in zip(NTH, lines, strict=False):
        quiz.add("transcribe/line", line, nth=nth)


def field_value(canvas: Canvas, field: str) -> str:
    rng, split = canvas.rng, canvas.split
    person = f"{words.pick(rng, split, words.NAMES)} {words.pick(rng, split, words.SURNAMES)}"
    city = words.pick(rng, split, words.CITIES)
    return {
        "Name": person,
        "Guest": person,
        "Doctor": person,
        "First name": words.pick(rng, split, words.NAMES),
        "Last name": words.pick(rng, split, words.SURNAMES),
        "City": city,
        "From": city,
        "To": words.pick(rng, split, words.CITIES),
        "Street": f"{words.pick(rng, split, words.EVERYDAY).capitalize()} {rng.randint(1, 199)}",
        "Phone": f"{rng.randint(100, 999)} {rng.randint(1000, 99999)}",
        "Date": words.date(rng),
        "Time": words.time(rng),
        "Age": str(rng.randint(1, 99)),
        "Room": str(rng.randint(1, 420)),
        "Seat": f"{rng.randint(1, 60)}{rng.choice('ABCDEF')}",
        "Gate": f"{rng.choice('ABCDE')}{rng.randint(1, 50)}",
        "Platform": str(rng.randint(1, 24)),
        "Number": words.code(rng),
        "Code": words.code(rng),
        "Price": words.price(rng, 200),
        "Weight": f"{rng.randint(1, 99)} kg",
        "Color": rng.choice(list(colours.COLOURS)),
        "Email": f"{words.pick(rng, split, words.NAMES).lower()}@{words.pick(rng, split, words.EVERYDAY)}.com",
        "Team": words.word(rng, split),
    }[field]


FORM_FIELDS = (
    "Name",
    "First name",
    "Last name",
    "City",
    "Street",
    "Phone",
    "Date",
    "Time",
    "Age",
    "Room",
    "Number",
    "Code",
    "Price",
    "Weight",
    "Email",
    "Team",
    "Doctor",
    "Guest",
)
TICKET_FIELDS = ("From", "To", "Date", "Time", "Seat", "Gate", "Platform", "Name", "Price", "Number")
TRAVEL = ("Airlines", "Rail", "Bus", "Travel", "Express")
FORM_TITLES = words.listed(
    "Registration Order Membership Application Invoice Delivery Booking Report Visitor Library Patient"
)


def ask_fields(quiz: Quiz, title: str, fields: dict[str, str], kind: str) -> None:
    for field, value in fields.items():
        quiz.add("document/field", value, field=field.lower() if quiz.coin() else field)
        quiz.add("document/which field", field, word=value)
        if field == "Date":
            quiz.add("document/date", value)
        if field == "Time":
            quiz.add("document/time", value)
        if field in ("Guest", "Doctor"):
            quiz.add("document/sender", value, role=field.lower())
    if not fields:
        raise NoRoomError
    quiz.add("document/title", title)
    quiz.add("count/things", len(fields), things="fields")
    quiz.add("caption/picture", f"a {kind} titled {title}")


def form(canvas: Canvas, quiz: Quiz) -> None:
    """Labels with values beside or below them, with or without boxes."""
    rng = canvas.rng
    left, right = sheet(canvas, rng.randint(250, 308))
    title = rng.choice(FORM_TITLES) + rng.choice((" form", "", " card", f" {rng.randint(2, 999)}"))
    if rng.random() < 0.25:
        title = words.word(rng, canvas.split)
    heading = canvas.fitting(title, right - left, rng.randint(18, 24), bold=True)
    y = rng.randint(10, 60)
    canvas.text(left, y, title, heading, colours.readable(rng, canvas.paper))
    y += heading.height + 10
    beside = rng.random() < 0.6
    names = rng.sample(FORM_FIELDS, rng.randint(3, 6 if beside else 4))
    at_right = beside and canvas.unseen()
    face, strong = canvas.face(rng.randint(15, 18), False), canvas.face(rng.randint(15, 19), rng.random() < 0.5)
    boxed, colon = rng.random() < 0.4, rng.choice((":", ":", ""))
    column = left + max(face.width(name + colon) for name in names) + 12
    pitch = min((SIZE - 12 - y) // len(names), (face.height + 16) if beside else (2 * face.height + 20))
    fields: dict[str, str] = {}
    lines = [title]
    for name in names:
        value = field_value(canvas, name)
        x = column if beside else left + 4
        if x + strong.width(value) > right or value in fields.values():
            continue
        canvas.text(left, y, name + colon, face, (90, 90, 90) if rng.random() < 0.3 else INK)
        top = y if beside else y + face.height + (5 if boxed else 1)
        if boxed:
            canvas.draw.rectangle((x - 4, top - 3, right, top + strong.height + 2), None, (130, 130, 130))
        canvas.text(right - 4 - strong.width(value) if at_right else x, top, value, strong, INK)
        fields[name] = value
        lines += [f"{name}{colon} {value}"] if beside else []
        y += pitch
    ask_fields(quiz, title, fields, "form")
    ask_lines(quiz, lines if beside else [])
    there = quiz.coin()
    field = rng.choice(list(fields) if there else [name for name in FORM_FIELDS if name not in names])
    quiz.add("existence/control", "yes" if there else "no", a_thing="a field", word=field)


def ticket(canvas: Canvas, quiz: Quiz) -> None:
    """Cells of two columns under a coloured heading."""
    rng = canvas.rng
    top = rng.randint(8, 60)
    box = (8, top, SIZE - 8, SIZE - rng.randint(8, 40))
    canvas.draw.rectangle(box, (252, 252, 250), (120, 120, 120))
    tint = rng.choice(("red", "blue", "green", "purple", "orange", "brown", "black"))
    title = f"{words.pick(rng, canvas.split, words.EVERYDAY).capitalize()} {rng.choice(TRAVEL)}"
    band = (box[0], box[1], box[2] + 1, box[1] + 38)
    rgb = canvas.panel(band, tint)
    canvas.centred(band, title, canvas.fitting(title, 280, rng.randint(18, 22), bold=True), colours.plain_ink(rgb))
    canvas.paper = (252, 252, 250)
    rows = 3 if box[3] - box[1] > 215 else 2
    names = rng.sample(TICKET_FIELDS, 2 * rows)
    face, strong = canvas.face(rng.randint(13, 15), False), canvas.face(rng.randint(17, 20))
    pitch = (box[3] - box[1] - 46) // rows
    fields: dict[str, str] = {}
    for index, name in enumerate(names):
        value = field_value(canvas, name)
        x, y = 18 + index % 2 * 150, box[1] + 46 + index // 2 * pitch
        font = canvas.fitting(value, 140, strong.size, 13, False)
        if font.width(value) > 142 or value in fields.values():
            continue
        canvas.text(x, y, name, face, (90, 90, 90))
        canvas.text(x, y + face.height + 2, value, font, INK)
        fields[name] = value
    ask_fields(quiz, title, fields, "ticket")
    there = quiz.coin()
    field = rng.choice(list(fields) if there else [name for name in TICKET_FIELDS if name not in names])
    quiz.add("existence/control", "yes" if there else "no", a_thing="a field", word=field)
    quiz.add("attribute/colour", tint, thing="heading")


TABLE_TITLES = ("Players", "Products", "Guests", "Results", "Staff", "Rooms", "Plan", "List")
COLUMNS = ("Age", "City", "Price", "Score", "Room", "Time", "Points", "Stock", "Year", "Color")


def cell_value(canvas: Canvas, column: str) -> str:
    rng = canvas.rng
    if column in ("Age", "Room", "Time", "Color", "City"):
        return field_value(canvas, column)
    if column == "Price":
        return words.price(rng)
    return str(rng.randint(1950, 2029)) if column == "Year" else str(rng.randint(1, 999))


def table(canvas: Canvas, quiz: Quiz) -> None:
    rng = canvas.rng
    titled = rng.random() < 0.5
    title = f"{rng.choice(TABLE_TITLES)} {words.code(rng)}"
    columns = rng.sample(COLUMNS, rng.choice((1, 2, 2, 3)))
    people = rng.random() < 0.6
    pool = words.NAMES if people else words.GOODS
    names = words.distinct(lambda: words.pick(rng, canvas.split, pool).capitalize(), rng.randint(2, 6))
    head = rng.choice(("Name", "Person") if people else ("Item", "Product"))
    cells: dict[str, list[str]] = {column: [] for column in columns}
    for column in columns:
        while len(cells[column]) < len(names):
            value = cell_value(canvas, column)
            if value not in cells[column]:
                cells[column].append(value)
    size = rng.randint(15, 19)
    face, strong = canvas.face(size, False), canvas.face(size, True)
    widths = [
        max(strong.width(top), *(face.width(text) for text in column)) + 16
        for top, column in [(head, names), *cells.items()]
    ]
    if sum(widths) > SIZE - 12:
        raise NoRoomError
    widths = [width + (SIZE - 12 - sum(widths)) // len(widths) * rng.randint(0, 1) for width in widths]
    canvas.paper = (254, 254, 254)
    canvas.draw.rectangle((4, 4, SIZE - 5, SIZE - 5), canvas.paper)
    y = rng.randint(10, 90)
    if titled:
        font = canvas.face(20, True)
        canvas.text(12, y, title, font, INK)
        y += font.height + 10
    pitch = min(face.height + rng.randint(6, 20), (SIZE - 14 - y) // (len(names) + 1))
    if pitch < face.height + 2:
        raise NoRoomError
    head_rgb = rng.choice(((222, 230, 240), (235, 225, 210), (220, 238, 220), (254, 254, 254), (225, 225, 225)))
    lined, striped = rng.random() < 0.6, rng.random() < 0.4
    left, right = 8, 8 + sum(widths)
    lines = [title] if titled else []
    for row in range(len(names) + 1):
        top = y + row * pitch
        if row == 0 or (striped and row % 2):
            canvas.draw.rectangle((left, top, right, top + pitch), head_rgb if row == 0 else (243, 243, 243))
        x = left
        texts = [head, *columns] if row == 0 else [names[row - 1], *(cells[column][row - 1] for column in columns)]
        for width, text in zip(widths, texts, strict=True):
            canvas.text(x + 8, top + (pitch - face.height) / 2, text, strong if row == 0 else face, INK)
            x += width
        lines.append(" ".join(texts))
        if lined:
            canvas.draw.line((left, top, right, top), (140, 140, 140), 1)
    if lined:
        canvas.draw.line((left, y + pitch * (len(names) + 1), right, y + pitch * (len(names) + 1)), (140, 140, 140), 1)
        for x in [left + sum(widths[:index]) for index in range(len(widths) + 1)]:
            canvas.draw.line((x, y, x, y + pitch * (len(names) + 1)), (140, 140, 140), 1)
    for column in columns:
        for name, value in zip(names, cells[column], strict=True):
            quiz.add("document/cell", value, field=column.lower() if quiz.coin() else column, word=name)
            quiz.add("document/row", name, field=column.lower(), value=value)
    for index, name in enumerate(names[: len(NTH)]):
        quiz.add("document/nth", name, nth=NTH[index])
    ask_lines(quiz, lines)
    if titled:
        quiz.add("document/title", title)
    quiz.add("count/things", len(columns) + 1, things="columns")
    quiz.add("count/things", len(names), things="names" if people else "items")
    ask_list(canvas, quiz, names, pool)
    quiz.add("caption/picture", f"a table with {len(names)} rows and {len(columns) + 1} columns")

# ruff: noqa: E501  lines of markup are left whole
"""Web pages that are read: receipts, forms, tables, charts, articles, menus."""

from __future__ import annotations

import html
from collections.abc import Callable
from itertools import pairwise

from training.pictures import colours, words
from training.pictures.documents import SHOP_KINDS, cents, money
from training.pictures.phrases import NTH
from training.renderers.webpage import Page, ask_chart, ask_prices, css, labels_for, prices_for, row, text


def receipt(page: Page) -> None:
    rng = page.rng
    shop = (
        f"{page.word(rng.choice((words.SURNAMES, words.CITIES, words.EVERYDAY))).capitalize()} {rng.choice(SHOP_KINDS)}"
    )
    goods = words.distinct(lambda: page.word(words.GOODS).capitalize(), rng.randint(2, 9))
    prices, sign, date = prices_for(page, len(goods)), rng.choice(("", "$", "€")), words.date(rng)
    page.add(text(shop, f"font-size:{rng.uniform(1.1, 2):.2f}em;text-align:{rng.choice(('center', 'left'))}", "h2"))
    page.add(row(date, words.time(rng) if rng.random() < 0.5 else ""))
    page.add("<hr>")
    for good, price in zip(goods, prices, strict=True):
        page.add(row(good, sign + price))
    total = sign + money(sum(map(cents, prices)))
    page.add("<hr>" + row(rng.choice(("Total", "TOTAL", "Sum", "Amount due", "To pay")), total, "font-weight:bold"))
    for _ in range(3):
        page.quiz.add("document/total", total)
    page.quiz.add("document/shop", shop)
    page.quiz.add("document/date", date)
    page.quiz.add("count/things", len(goods), things="items")
    ask_prices(page, goods, prices, sign)


FIELDS: dict[str, Callable[[Page], str]] = {
    "Name": lambda page: page.name(),
    "City": lambda page: page.word(words.CITIES),
    "Date": lambda page: words.date(page.rng),
    "Phone": lambda page: f"{page.rng.randint(100, 999)}-{page.rng.randint(1000, 9999)}",
    "Order": lambda page: words.code(page.rng),
    "Room": lambda page: str(page.rng.randint(1, 999)),
    "Company": lambda page: f"{page.word(words.SURNAMES)} {page.rng.choice(('Ltd', 'Inc', 'Group', 'Labs'))}",
    "Email": lambda page: f"{page.word(words.NAMES).lower()}@{page.word(words.EVERYDAY)}.com",
    "Status": lambda page: page.rng.choice(("open", "closed", "paid", "pending", "shipped", "late", "done")),
    "Weight": lambda page: f"{page.rng.randint(1, 99)} kg",
    "Code": lambda page: words.code(page.rng),
    "Age": lambda page: str(page.rng.randint(18, 90)),
    "Amount": lambda page: words.price(page.rng, 900),
    "Owner": lambda page: page.name(),
    "Gate": lambda page: page.rng.choice("ABCDEF") + str(page.rng.randint(1, 60)),
}


def form(page: Page) -> None:
    rng = page.rng
    title = rng.choice(("Order", "Booking", "Customer", "Delivery", "Contract", "Member", "Details", "Summary"))
    names = rng.sample(list(FIELDS), rng.randint(2, 8))
    values = [FIELDS[name](page) for name in names]
    page.add(text(title, "font-size:1.4em", "h3"))
    above, boxed = rng.random() < 0.35, rng.random() < 0.5
    frame = "border:1px solid #8888;border-radius:4px;padding:2px 6px;" if boxed else ""
    for name, value in zip(names, values, strict=True):
        label = text(name + rng.choice(("", "", ":")), "opacity:.75;font-size:.9em")
        shown = text(value, frame)
        page.add(f"<div>{label}<br>{shown}</div>" if above else row(label, shown))
        page.quiz.add("document/field", value, field=name.lower())
        page.quiz.add("document/field", value, field=name)
        if sum(value == other for other in values) == 1:
            page.quiz.add("document/which field", name, word=value)
    page.quiz.add("document/title", title)
    page.quiz.add("count/things", len(names), things="fields")
    page.ask_words(" ".join(values).split())


def columns_for(page: Page, count: int) -> dict[str, list[str]]:
    """Name of a column -> its values, all of a column different."""
    rng = page.rng
    kinds: dict[str, Callable[[], str]] = {
        "Price": lambda: words.price(rng, 90),
        "Points": lambda: str(rng.randint(1, 999)),
        "City": lambda: page.word(words.CITIES),
        "Year": lambda: str(rng.randint(1950, 2029)),
        "Code": lambda: words.code(rng),
        "Stock": lambda: str(rng.randint(1, 99)),
        "Time": lambda: words.time(rng),
        "Score": lambda: f"{rng.randint(0, 9)}.{rng.randint(0, 9)}",
        "Owner": lambda: page.word(words.SURNAMES),
    }
    found = {}
    for name in rng.sample(list(kinds), rng.randint(1, 3)):
        values: list[str] = []
        while len(values) < count:
            value = kinds[name]()
            if value not in values:
                values.append(value)
        found[name] = values
    return found


def table(page: Page) -> None:
    rng = page.rng
    count = rng.randint(2, 8)
    head, pool = rng.choice((("Item", words.GOODS), ("Name", words.NAMES), ("Product", words.EVERYDAY)))
    first = words.distinct(lambda: page.word(pool).capitalize(), count)
    columns = columns_for(page, count)
    line = rng.choice(("", "border-bottom:1px solid #8886", "border:1px solid #8889"))
    stripe, align = rng.random() < 0.4, rng.choice(("left", "right", "center"))
    cells = "".join(f'<th style="{line};padding:3px 7px;text-align:{align}">{name}</th>' for name in columns)
    rows = [f'<tr style="background:#8883"><th style="{line};padding:3px 7px;text-align:left">{head}</th>{cells}</tr>']
    for i, name in enumerate(first):
        cells = "".join(
            f'<td style="{line};padding:3px 7px;text-align:{align}">{html.escape(values[i])}</td>'
            for values in columns.values()
        )
        shade = "background:#8882" if stripe and i % 2 else ""
        rows.append(f'<tr style="{shade}"><td style="{line};padding:3px 7px">{name}</td>{cells}</tr>')
    if rng.random() < 0.6:
        title = rng.choice((page.word().capitalize(), rng.choice(("Prices", "Results", "Stock", "Ranking", "Team"))))
        page.add(text(title, "font-size:1.4em", "h3"))
        page.quiz.add("document/title", title)
    page.add(f'<table style="border-collapse:collapse;width:100%">{"".join(rows)}</table>')
    for name, values in columns.items():
        for label, value in zip(first, values, strict=True):
            page.quiz.add("document/cell", value, field=name.lower(), word=label)
            page.quiz.add("document/row", label, field=name.lower(), value=value)
    for index, label in enumerate(first[: len(NTH)]):
        page.quiz.add("document/nth", label, nth=NTH[index])
    page.quiz.add("count/things", count, things="rows")
    page.quiz.add("count/things", len(columns) + 1, things="columns")
    page.ask_words(first)


def bars(page: Page) -> None:
    """A chart of boxes, lying or standing, with its values printed."""
    rng = page.rng
    count = rng.randint(2, 7)
    labels, values = labels_for(page, count), rng.sample(range(2, 100), count)
    tints = [name for name in colours.COLOURS if name not in ("black", "white", "gray")]
    tints = rng.sample(tints, count) if rng.random() < 0.5 else [rng.choice(tints)] * count
    title = rng.choice(("Sales", "Visits", "Costs", "Scores", "Orders", "Users", page.word().capitalize()))
    page.add(text(title, "font-size:1.3em", "h3"))
    lying, thick = rng.random() < 0.5, rng.randint(14, 34)
    parts = []
    for label, value, tint in zip(labels, values, tints, strict=True):
        box = f'<div data-shape="bar {tint}" style="background:{css(colours.shade(rng, tint))};'
        share = 20 + 200 * value / max(values)
        if lying:
            parts.append(
                f'<tr><td style="padding-right:6px">{label}</td><td style="white-space:nowrap">{box}display:inline-block;'
                f'height:{thick}px;width:{share / 2:.0f}px;vertical-align:middle"></div> {value}</td></tr>'
            )
        else:
            parts.append(
                f'<td style="vertical-align:bottom;text-align:center;padding:0 3px">{value}{box}height:{share * 0.7:.0f}px;'
                f'width:{thick}px;margin:auto"></div>{label}</td>'
            )
    page.add(f"<table>{''.join(parts)}</table>" if lying else f"<table><tr>{''.join(parts)}</tr></table>")
    ask_chart(page, labels, values, tints, "bar")
    page.quiz.add("chart/title", title)


def article(page: Page) -> None:
    rng = page.rng
    title = f"{page.word().capitalize()} {page.word()}"
    lines = [" ".join(page.word() for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 6))]
    tag = rng.choice(("div", "div", "li"))
    page.add(text(title, f"font-size:{rng.uniform(1.2, 2):.2f}em;white-space:nowrap", "h2"))
    for line in lines:
        page.add(text(line, "white-space:nowrap", tag))
    quiz, shown = page.quiz, [title, *lines]
    quiz.add("document/title", title)
    for index, line in enumerate(shown[: len(NTH)]):
        quiz.add("reading/line", line, nth=NTH[index])
        quiz.add("transcribe/line", line, nth=NTH[index])
        for at, word in enumerate(line.split()[: len(NTH)]):
            quiz.add("reading/word of line", word, nth=NTH[at], nth_line=NTH[index])
        pieces = line.split()
        for word, following in pairwise(pieces):
            if " ".join(shown).lower().count(word.lower()) == 1:
                quiz.add("reading/next word", following, word=word)
    quiz.add("reading/line", shown[-1], nth="last")
    quiz.add("count/things", len(shown), things="lines")
    quiz.add("transcribe/all", " ".join(shown))
    page.ask_words(" ".join(shown).split())


def menu(page: Page) -> None:
    """Prices after a row of dots, in groups."""
    rng = page.rng
    title = f"{page.word().capitalize()} {rng.choice(('Menu', 'Bar', 'Cafe', 'Grill'))}"
    goods = words.distinct(lambda: page.word(words.GOODS).capitalize(), rng.randint(2, 8))
    prices, sign = prices_for(page, len(goods)), rng.choice(("", "$", "£"))
    page.add(text(title, "font-size:1.5em;text-align:center", "h2"))
    dots = '<span style="flex:1;border-bottom:2px dotted #8888;margin:0 4px"></span>'
    for good, price in zip(goods, prices, strict=True):
        page.add(f'<div style="display:flex">{text(good)}{dots}{text(sign + price)}</div>')
    page.quiz.add("document/title", title)
    page.quiz.add("count/things", len(goods), things="items")
    ask_prices(page, goods, prices, sign)

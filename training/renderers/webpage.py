# ruff: noqa: E501  lines of markup are left whole
"""A web page that is being written, with its questions."""

from __future__ import annotations

import html
import random
from dataclasses import dataclass, field

from training.pictures import words
from training.pictures.documents import cents
from training.pictures.phrases import NTH
from training.pictures.quiz import Quiz


@dataclass
class Page:
    rng: random.Random
    split: str
    quiz: Quiz
    parts: list[str] = field(default_factory=list)
    css: str = ""
    photo: bool = False  # a photograph lies behind it

    def add(self, markup: str) -> None:
        self.parts.append(markup)

    def word(self, pool: list[str] | None = None) -> str:
        if pool is None:
            return words.word(self.rng, self.split)
        return words.pick(self.rng, self.split, pool)

    def name(self) -> str:
        return f"{self.word(words.NAMES)} {self.word(words.SURNAMES)}"

    def ask_words(self, texts: list[str]) -> None:
        """Whether a word is there: one of these, or another."""
        there = self.quiz.coin()
        word = self.rng.choice(texts) if there else self.word()
        if there or word.lower() not in " ".join(texts).lower():
            self.quiz.add("existence/word", "yes" if there else "no", word=word)


def text(value: object, style: str = "", tag: str = "span") -> str:
    return f'<{tag} style="{style}">{html.escape(str(value))}</{tag}>'


def css(rgb: tuple[int, int, int]) -> str:
    return f"rgb({rgb[0]},{rgb[1]},{rgb[2]})"


def row(left: str, right: str, style: str = "") -> str:
    return f'<div style="display:flex;justify-content:space-between;gap:1em;{style}"><span>{left}</span><span>{right}</span></div>'


def prices_for(page: Page, count: int, most: int = 30) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        price = words.price(page.rng, most)
        if cents(price) and price not in found:
            found.append(price)
    return found


def ask_prices(page: Page, goods: list[str], prices: list[str], sign: str) -> None:
    quiz, asked = page.quiz, [sign + price for price in prices]
    for good, price in zip(goods, asked, strict=True):
        quiz.add("document/price", price, word=good)
        quiz.add("document/which price", good, value=price)
    by_price = sorted(zip(map(cents, prices), goods, strict=True))
    quiz.add("document/extreme", by_price[-1][1])
    quiz.add("document/cheapest", by_price[0][1])
    for index, good in enumerate(goods[: len(NTH)]):
        quiz.add("document/nth", good, nth=NTH[index])
    there = quiz.coin()
    other = page.word(words.GOODS)
    if there or other.lower() not in " ".join(goods).lower():
        quiz.add("existence/item", "yes" if there else "no", word=page.rng.choice(goods) if there else other)


def labels_for(page: Page, count: int) -> list[str]:
    pool = page.rng.choice((words.CITIES, words.NAMES, words.GOODS, words.MONTHS, words.EVERYDAY))
    if pool is words.MONTHS:
        return words.MONTHS[:count] if count <= 12 else words.MONTHS
    return words.distinct(lambda: page.word(pool).capitalize()[:9], count)


def ask_chart(page: Page, labels: list[str], values: list[int], tints: list[str], bar: str) -> None:
    quiz, rng = page.quiz, page.rng
    pairs = list(zip(labels, values, strict=True))
    for label, value in pairs:
        quiz.add("chart/value", value, word=label)
        quiz.add("chart/which", label, value=value, bar=bar)
    for most, chosen in (("highest", max), ("lowest", min)):
        label, value = chosen(pairs, key=lambda pair: pair[1])
        quiz.add("chart/extreme", label, most=most, bar=bar)
        quiz.add("chart/extreme value", value, most=most)
    (a, x), (b, y) = rng.sample(pairs, 2)
    higher = quiz.coin()
    quiz.add("chart/compare", a if (x > y) == higher else b, more="higher" if higher else "lower", word=a, other=b)
    for index, label in enumerate(labels[: len(NTH)]):
        quiz.add("chart/place", label, nth=NTH[index], bar=bar)
    quiz.add("count/things", len(pairs), things=bar + "s")
    for label, tint in zip(labels, tints, strict=True):
        if tint:
            quiz.add("attribute/bar colour", tint, bar=bar, word=label)
        if tint and tints.count(tint) == 1:
            quiz.add("chart/colour", label, colour=tint, bar=bar)

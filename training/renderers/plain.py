"""Plainly drawn pictures with Pillow's own font, for tests alone: nothing of them is in training."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw, ImageFont

from training import pictures
from training.pictures import words
from training.pictures.documents import cents, money
from training.pictures.quiz import Quiz

SIZE = 320
TINTS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 119, 180), "orange": (255, 127, 14),
         "purple": (148, 103, 189), "yellow": (240, 220, 30), "black": (0, 0, 0)}  # fmt: skip


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def plain(seed: int) -> pictures.Sample:
    rng = random.Random(f"plain/{seed}")
    image = Image.new("RGB", (SIZE, SIZE), rng.choice(("white", "white", "#f4f4f4", "#ffffe8")))
    draw, quiz = ImageDraw.Draw(image), Quiz(rng)
    kind = (one_word, receipt, bars, figures)[seed % 4]
    kind(rng, draw, quiz)
    return pictures.Sample(image, quiz.choose(6), [], [], "plain", kind.__name__)


def one_word(rng: random.Random, draw: ImageDraw.ImageDraw, quiz: Quiz) -> None:
    word = words.pick(rng, "test", words.EVERYDAY)
    word = rng.choice((word, word.capitalize(), word.upper()))
    size = rng.randint(28, 60)
    while draw.textlength(word, font(size)) > SIZE - 10:
        size -= 2
    wide = int(draw.textlength(word, font(size)))
    draw.text((rng.randint(4, SIZE - 4 - wide), rng.randint(10, SIZE - 90)), word, "black", font(size))
    for _ in range(4):
        quiz.add("reading/text", word)
    there = quiz.coin()
    other = words.pick(rng, "test", words.EVERYDAY)
    if there or other.lower() not in word.lower():
        quiz.add("existence/word", "yes" if there else "no", word=word if there else other)


def receipt(rng: random.Random, draw: ImageDraw.ImageDraw, quiz: Quiz) -> None:
    goods = words.distinct(lambda: words.pick(rng, "test", words.GOODS).capitalize(), rng.randint(2, 4))
    prices = [words.price(rng) for _ in goods]
    size = rng.randint(18, 26)
    shop = f"{words.pick(rng, 'test', words.CITIES)} Shop"
    total = money(sum(map(cents, prices)))
    y = 16
    for left, right in [(shop, ""), *zip(goods, prices, strict=True), ("Total", total)]:
        draw.text((20, y), left, "black", font(size))
        draw.text((300 - draw.textlength(right, font(size)), y), right, "black", font(size))
        y += size + 14
    quiz.add("document/total", total)
    quiz.add("document/shop", shop)
    for good, price in zip(goods, prices, strict=True):
        quiz.add("document/price", price, word=good)
        if prices.count(price) == 1:
            quiz.add("document/which price", good, value=price)


def bars(rng: random.Random, draw: ImageDraw.ImageDraw, quiz: Quiz) -> None:
    labels = rng.choice((list("ABCD"), ["Mon", "Tue", "Wed", "Thu"], ["2019", "2020", "2021", "2022"]))
    values, tint = rng.sample(range(5, 100), 4), rng.choice(list(TINTS))
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        x = 30 + 70 * i
        draw.rectangle((x, 270 - 2 * value, x + 44, 270), TINTS[tint])
        draw.text((x + 6, 276), label, "black", font(20))
        draw.text((x + 8, 246 - 2 * value), str(value), "black", font(20))
    pairs = list(zip(values, labels, strict=True))
    quiz.add("chart/extreme", max(pairs)[1], most="highest", bar="bar")
    quiz.add("chart/extreme", min(pairs)[1], most="lowest", bar="bar")
    quiz.add("chart/extreme value", max(values), most="highest")
    for value, label in pairs:
        quiz.add("chart/value", value, word=label)
    quiz.add("count/things", 4, things="bars")


def figures(rng: random.Random, draw: ImageDraw.ImageDraw, quiz: Quiz) -> None:
    spots = rng.sample([(60, 60), (160, 60), (260, 60), (60, 200), (160, 200), (260, 200)], rng.randint(1, 5))
    things = [(rng.choice(("circle", "square", "triangle")), rng.choice(list(TINTS))) for _ in spots]
    for (x, y), (kind, tint) in zip(spots, things, strict=True):
        r = rng.randint(24, 40)
        if kind == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), TINTS[tint])
        elif kind == "square":
            draw.rectangle((x - r, y - r, x + r, y + r), TINTS[tint])
        else:
            draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], TINTS[tint])
    quiz.add("count/things", len(things), things="shapes")
    kind = rng.choice(("circle", "square", "triangle"))
    quiz.add("count/things", sum(k == kind for k, _ in things), things=kind + "s")
    for k, t in things:
        if sum(k == other for other, _ in things) == 1:
            quiz.add("attribute/colour", t, thing=k)
        if sum(t == other for _, other in things) == 1:
            quiz.add("attribute/shape", k, colour=t)
    k, t = rng.choice(("circle", "square", "triangle")), rng.choice(list(TINTS))
    quiz.add("existence/thing", "yes" if (k, t) in things else "no", a_thing=f"a{'n' if t == 'orange' else ''} {t} {k}")

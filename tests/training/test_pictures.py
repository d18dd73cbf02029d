"""The demo model's pictures: the same from the same seed, apart between splits, and with answers that are true."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import pairwise

import pytest
from PIL import Image

from training import pictures, testset
from training.pictures import fonts, words
from training.pictures.colours import distance
from training.pictures.phrases import PHRASES
from training.pictures.quiz import LONGEST_ANSWER
from training.pictures.shapes import plural

PER_KIND = {"train": 60, "validation": 6, "test": 20}


@pytest.fixture(scope="module")
def samples() -> dict[str, list[pictures.Sample]]:
    return {
        split: [pictures.make(seed, split, kind) for kind in pictures.KINDS for seed in range(count)]
        for split, count in PER_KIND.items()
    }


@pytest.fixture(scope="module")
def everything(samples) -> list[pictures.Sample]:
    return [sample for drawn in samples.values() for sample in drawn]


def questions(drawn: list[pictures.Sample], *groups: str) -> list[tuple[pictures.Sample, pictures.Question]]:
    return [(sample, one) for sample in drawn for one in sample.questions if one.group in groups]


def written(sample: pictures.Sample) -> str:
    """All that is written, in the order in which it was, without spaces."""
    return "".join(char for char, *_ in sample.chars)


def named(sample: pictures.Sample) -> list[tuple[str, str]]:
    return [(kind, colour) for kind, colour, *_ in sample.shapes if kind in pictures.NAMED_SHAPES]


def test_every_picture_is_complete(everything):
    for sample in everything:
        assert sample.image.size == (320, 320) and sample.image.mode == "RGB"
        assert 6 <= len(sample.questions) <= 10
        assert len({one.text.lower() for one in sample.questions}) == len(sample.questions)
        for one in sample.questions:
            assert one.task in pictures.TASKS + pictures.EXTRA_TASKS and one.group.startswith(one.task + "/")
            assert 0 < len(one.answer) <= LONGEST_ANSWER and one.answer == one.answer.strip()
            assert "{" not in one.text


def test_every_layout_and_every_phrase_is_used(everything):
    layouts = {layout.__name__ for kind in pictures.KINDS.values() for layout, _ in kind}
    assert {sample.layout for sample in everything} == layouts
    used = {one.group for sample in everything for one in sample.questions}
    assert used == set(PHRASES)


DIGEST = """
import hashlib
from training import pictures
digest = hashlib.sha256()
for seed in range(2):
    for kind in [None, *pictures.KINDS]:
        sample = pictures.make(seed, "test", kind)
        digest.update(sample.image.tobytes())
        digest.update(repr((sample.questions, sample.chars, sample.shapes)).encode())
print(digest.hexdigest())
"""


def test_a_seed_is_a_picture_in_every_process(root):
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert digests[0] == digests[1]


def test_seeds_and_splits_give_different_pictures():
    drawn = [pictures.make(seed, split, "words").image.tobytes() for split in pictures.SPLITS for seed in range(4)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("split", "kind", "said"), [("dev", None, "'dev'"), ("train", "photo", "'photo'")])
def test_unknown_names_are_quoted(split, kind, said):
    with pytest.raises(ValueError, match=said):
        pictures.make(0, split, kind)


def test_no_font_serves_two_splits():
    files = {
        split: {path.name.split("-")[0] for pair in fonts.families(split) for path in pair} for split in pictures.SPLITS
    }
    for split, names in files.items():
        others = set().union(*(files[other] for other in pictures.SPLITS if other != split))
        assert names and not names & others


def test_training_keeps_words_and_layouts_for_later(samples):
    rng = random.Random(0)
    for pool in (words.EVERYDAY, words.NAMES, words.SURNAMES, words.CITIES, words.GOODS):
        assert not any(words.held_out(words.pick(rng, "train", pool)) for _ in range(500))
        drawn = [words.held_out(words.pick(rng, "test", pool)) for _ in range(500)]
        assert 0.4 < sum(drawn) / len(drawn) < 0.6

    def price_first(sample):
        return (
            sample.layout == "receipt" and re.search(r"\d\.\d\d[A-Za-z]+\d+\.\d\d[A-Za-z]", written(sample)) is not None
        )

    def good_first(sample):
        total = re.search(r"(Total|TOTAL|Sum|Topay)\$?\d", written(sample))
        return sample.layout == "receipt" and re.search(r"\.\d\d$", written(sample)[: total.start()]) is not None

    assert all(good_first(sample) for sample in samples["train"] if sample.layout == "receipt")
    assert any(price_first(sample) and not good_first(sample) for sample in samples["test"])


def test_boxes_hold_what_was_drawn(everything):
    for sample in everything:
        for char, *box in sample.chars:
            assert char in pictures.CHARACTERS
            assert 0 <= box[0] < box[2] <= 320 and 0 <= box[1] < box[3] <= 320
            around = (max(0, box[0] - 1), max(0, box[1] - 1), min(320, box[2] + 1), min(320, box[3] + 1))
            assert max(high - low for low, high in sample.image.crop(around).getextrema()) > 40, (sample.layout, char)
        for kind, colour, *box in sample.shapes:
            assert kind in pictures.SHAPE_KINDS and colour in pictures.COLOURS
            assert 0 <= box[0] < box[2] <= 320 and 0 <= box[1] < box[3] <= 320
            if kind in pictures.NAMED_SHAPES and kind != "ring":
                x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
                seen = (
                    sample.image.crop((x - 3, y - 3, x + 4, y + 4))
                    .resize((1, 1), Image.Resampling.BOX)
                    .getpixel((0, 0))
                )
                nearest = min(pictures.COLOURS, key=lambda name: distance(pictures.COLOURS[name], seen))
                assert nearest == colour


def test_shapes_are_counted_right(everything):
    """Counts, existence and colours, again from the list of shapes."""
    plurals = {plural(kind): kind for kind in pictures.NAMED_SHAPES} | {"shapes": ""}
    checked = Counter()
    for sample, one in questions(everything, "count/things", "existence/thing", "existence/colour", "attribute/colour"):
        if sample.kind != "shapes" or "frame" in one.text:
            continue
        things = named(sample)
        found = re.findall(r"[a-z]+", one.text.lower())
        colour = next((word for word in found if word in pictures.COLOURS), "")
        if one.group == "count/things":
            kinds = [plurals[word] for word in found if word in plurals]
            if not kinds:
                continue  # rows and columns
            expected = str(sum(colour in ("", tint) and kinds[-1] in ("", kind) for kind, tint in things))
        else:
            kind = next((word for word in found if word in pictures.NAMED_SHAPES), "")
            fitting = [tint for shape, tint in things if kind in ("", shape) and colour in ("", tint)]
            expected = fitting[0] if one.task == "attribute" else "yes" if fitting else "no"
        assert one.answer == expected, one
        checked[one.group] += 1
    assert min(checked.values()) >= 15 and len(checked) == 4


def test_sides_are_true(everything):
    checked = 0
    for sample, one in questions(everything, "relation/which side", "relation/which height"):
        if sample.kind != "shapes":
            continue
        pattern = "|".join(f"(?:(?:{'|'.join(pictures.COLOURS)}) )?{kind}" for kind in pictures.NAMED_SHAPES)
        first, second = re.findall(pattern, one.text)
        if one.text.lower().startswith("on which side"):
            first, second = second, first
        places = []
        for name in (first, second):
            boxes = [box for kind, colour, *box in sample.shapes if name in (kind, f"{colour} {kind}")]
            assert len(boxes) == 1, one
            places.append(boxes[0])
        axis = 0 if one.group == "relation/which side" else 1
        low, high = ("left", "right") if axis == 0 else ("above", "below")
        a, b = (place[axis] + place[axis + 2] for place in places)
        assert one.answer == (low if a < b else high), one
        checked += 1
    assert checked >= 20


def test_answers_that_are_read_are_written(everything):
    """For what is copied from the picture, and for whether a word is there."""
    copied = (
        *("reading/near", "reading/place", "reading/panel", "reading/text", "reading/line", "reading/next word"),
        *("chart/title", "chart/extreme", "chart/which", "chart/compare", "chart/place", "chart/colour"),
        *("document/total", "document/price", "document/shop", "document/date", "document/field", "document/cell"),
        *("document/title", "interface/title", "interface/button", "interface/tab", "interface/field"),
        *("interface/message", "interface/which checked", "interface/menu", "interface/highlighted"),
    )
    found = questions(everything, *copied)
    assert {one.group for _, one in found} == set(copied)
    for sample, one in found:
        assert one.answer.replace(" ", "") in written(sample), one
    for sample, one in questions(everything, "existence/word"):
        word = re.search(r'"(.*)"', one.text)[1].replace(" ", "").lower()
        assert (word in written(sample).lower()) == (one.answer == "yes"), one


def test_receipts_add_up(samples):
    receipts = [sample for sample in samples["train"] if sample.layout == "receipt"]
    assert len(receipts) >= 10
    for sample in receipts:
        prices = [Fraction(price) for price in re.findall(r"(?<=[A-Za-z$])\d+\.\d\d(?!\.)", written(sample))]
        assert len(prices) >= 3 and sum(prices[:-1]) == prices[-1]
        for total in (one.answer for one in sample.questions if one.group == "document/total"):
            assert Fraction(total.lstrip("$")) == prices[-1]


def test_bars_are_as_high_as_their_values(everything):
    """What is printed above a bar fits its height, and the label below the extreme bar is the answer."""
    printed, labelled = 0, 0
    for sample in everything:
        if sample.layout != "bars":
            continue
        bars = [box for kind, _, *box in sample.shapes if kind == "bar"]
        room = min(after[0] - before[0] for before, after in pairwise(bars))

        def near(bar, top, bottom, sample=sample, room=room):
            middle = (bar[0] + bar[2]) / 2
            inside = [char for char in sample.chars if abs((char[1] + char[3]) / 2 - middle) < room / 2]
            return "".join(char for char, _, y, _, y1 in inside if top <= y and y1 <= bottom)

        values = [near(bar, bar[1] - 24, bar[1]) for bar in bars]
        if all(values):
            scale = max(map(int, values)) / max(bottom - top for _, top, _, bottom in bars)
            for value, (_, top, _, bottom) in zip(values, bars, strict=True):
                assert (bottom - top) * scale == pytest.approx(int(value), abs=1.2 * max(1, scale))
            printed += 1
        for one in (one for one in sample.questions if one.group == "chart/extreme"):
            highest = "highest" in one.text or "largest" in one.text
            bar = (min if highest else max)(bars, key=lambda bar: bar[1])
            assert near(bar, bar[3], 320) == one.answer, one
            labelled += 1
    assert printed >= 8 and labelled >= 8


def test_boxes_are_ticked_as_told(everything):
    checked = 0
    for sample, one in questions(everything, "count/things"):
        if re.search(r"checked (check)?boxes|switches that are on", one.text):
            assert one.answer == str(sum(kind == "checked" for kind, *_ in sample.shapes)), one
            checked += 1
    assert checked >= 5


def test_guessing_without_the_picture_is_poor(samples):
    """The best constant answer of each task, and of each way to ask."""
    by_task, by_group = defaultdict(Counter), defaultdict(Counter)
    for sample in samples["train"]:
        for one in sample.questions:
            by_task[one.task][one.answer] += 1
            by_group[one.group][one.answer] += 1
    most = {"existence": 0.58, "count": 0.32, "attribute": 0.12, "relation": 0.25, "reading": 0.06}
    for task in pictures.TASKS:
        answers = by_task[task]
        assert answers.total() > 100
        assert answers.most_common(1)[0][1] / answers.total() < most.get(task, 0.1), task
    for group, answers in by_group.items():
        if len(answers) == 2 and answers.total() >= 30:
            chance = 2 / answers.total() ** 0.5  # four standard deviations of a coin
            assert answers.most_common(1)[0][1] / answers.total() < 0.5 + chance, group


def test_questions_about_shapes_need_few_words(everything):
    vocabulary = set(pictures.template_words())
    assert len(vocabulary) <= 700
    for sample in everything:
        if sample.kind == "shapes":
            for one in sample.questions:
                assert set(re.findall(r"[A-Za-z0-9]+", f"{one.text} {one.answer}")) <= vocabulary, one


def test_pairs_are_about_different_parts(tmp_path):
    assert testset.main(["-o", str(tmp_path / "set"), "--questions", "40", "--pairs"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "set" / "questions.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert len({line["image"] for line in lines}) == 20
    assert not {line["task"] for line in lines} & {*testset.WHOLE_PICTURE, *pictures.EXTRA_TASKS}
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert first["image"] == second["image"] and first["question"] != second["question"]


def test_far_apart():
    """Letters at the top, beside it and at the bottom."""
    chars = [("K", 10, 10, 20, 24), ("Q", 200, 280, 210, 294), ("Z", 30, 10, 40, 24)]
    asked = [pictures.Question("reading", "Is it?", letter, "") for letter in "KZQ"]
    sample = pictures.Sample(pictures.make(1, "train").image, asked, chars, [], "", "")
    assert testset.far_apart(sample) == (asked[0], asked[2])
    sample.questions = asked[:2]
    assert testset.far_apart(sample) is None


def test_a_test_set_is_even_and_whole(tmp_path, capsys):
    folder = tmp_path / "set"
    assert testset.main(["-o", str(folder), "--questions", "51", "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "questions.jsonl")
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    counts = Counter(line["task"] for line in lines)
    assert len(lines) == 51 and set(counts) == set(pictures.TASKS) and set(counts.values()) == {6, 7}
    for line in lines:
        assert set(line) == {"image", "question", "answers", "task", "metric"} and len(line["answers"]) == 1
    assert {path.name for path in folder.glob("*.png")} == {line["image"] for line in lines}
    assert Image.open(folder / lines[0]["image"]).size == (320, 320)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]

    again = tmp_path / "again"
    testset.main(["-o", str(again), "--questions", "51", "--seed", "3"])
    other = tmp_path / "other"
    testset.main(["-o", str(other), "--questions", "51", "--seed", "4"])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == files
    assert (other / "00000.png").read_bytes() != files["00000.png"]


def test_a_test_set_replaces_nothing(tmp_path, capsys, monkeypatch):
    assert testset.main(["-o", str(tmp_path)]) == 1
    assert f"'{tmp_path}' exists already" in capsys.readouterr().err
    assert testset.main(["-o", str(tmp_path / "a" / "b")]) == 1
    assert f"no folder '{tmp_path / 'a'}'" in capsys.readouterr().err
    assert testset.main(["-o", str(tmp_path / "few"), "--questions", "3"]) == 1
    assert "--questions 3 is too few" in capsys.readouterr().err

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "make", broken)
    with pytest.raises(KeyboardInterrupt):
        testset.main(["-o", str(tmp_path / "half")])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_font_package_is_named(tmp_path, capsys, monkeypatch):
    fonts.packaged.cache_clear()
    monkeypatch.setitem(fonts.FAMILIES, "test", {"font_nowhere": [("A.ttf", "B.ttf")]})
    try:
        assert testset.main(["-o", str(tmp_path / "set")]) == 1
        assert "'font_nowhere' is missing" in capsys.readouterr().err
    finally:
        fonts.packaged.cache_clear()

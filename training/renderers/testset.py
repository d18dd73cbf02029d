"""`python -m training.renderers.testset -o DIR`: questions for `halfv eval` about pictures unlike those of training.

Plain ones, by Pillow with its own font; with --fonts plots in styles and fonts kept for tests; with --pages web
pages whose fonts, and in part layouts, are. Tasks are named by renderer.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from training import pictures
from training.renderers import plots, typefaces
from training.renderers.plain import plain
from training.renderers.store import Reader
from training.scenes import PLOT_SIZES
from training.testset import QUESTIONS_FILE, line

OF_EACH = 2  # questions about a picture


def plotted(fonts: Path) -> Iterator[pictures.Sample]:
    paths = [regular for regular, _ in typefaces.families(fonts, "test").values()]
    rng = random.Random(0)
    return (plots.plot(seed, "test", paths, rng.choice(PLOT_SIZES)) for seed in count())


def write(folder: Path, name: str, samples: Iterator[pictures.Sample], questions: int) -> None:
    left = questions
    with open(folder / QUESTIONS_FILE, "a", encoding="utf-8") as out:
        for number, sample in enumerate(samples):
            asked = [question for question in sample.questions if question.task in pictures.TASKS][: min(OF_EACH, left)]
            if asked:
                sample.image.save(folder / f"{name}-{number:05d}.png")
            for question in asked:
                out.write(line(f"{name}-{number:05d}.png", replace(question, task=name)))
            left -= len(asked)
            if not left:
                return


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.renderers.testset", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--questions", type=int, default=400, help="of each renderer (%(default)d)")
    parser.add_argument("--fonts", type=Path, help="folder of training.renderers.typefaces: plots too")
    parser.add_argument("--pages", type=Path, help="folder of training.renderers.browser --split test: web pages too")
    parser.add_argument("--name", default="test", help="of its files (%(default)s)")
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"'{args.output}' exists already: name a new folder, or remove it first.")
    args.output.mkdir(parents=True)
    write(args.output, "plain", map(plain, count()), args.questions)
    if args.fonts:
        write(args.output, "plot", plotted(args.fonts), args.questions)
    if args.pages:
        write(args.output, "web", iter(Reader(args.pages, args.name)), args.questions)
    print(args.output / QUESTIONS_FILE)


if __name__ == "__main__":
    main()

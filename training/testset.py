"""Writes pictures and questions for `halfv eval`: python -m training.testset -o DIR"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from training import pictures

QUESTIONS_FILE = "questions.jsonl"
SEED_STRIDE = 10_000_000  # pictures of different seeds never meet


# Where to look for a task that lacks questions
KIND_FOR = {
    "existence": "shapes",
    "count": "shapes",
    "attribute": "mixed",
    "relation": "shapes",
    "reading": "words",
    "chart": "chart",
    "document": "document",
    "interface": "interface",
}
WHOLE_PICTURE = ("existence", "count")  # tasks whose answers may need a look at all of it
APART = 4  # tokens of a picture of 16 x 16, between what two questions of a pair are about
SLACK = 3  # how far a task may run ahead of the one that lacks most, so that every stretch of the file is even


def quotas(questions: int) -> Counter[str]:
    """How many questions each task gets: evenly, the first ones one more where it does not divide."""
    each, more = divmod(questions, len(pictures.TASKS))
    return Counter({task: each + (index < more) for index, task in enumerate(pictures.TASKS)})


def line(name: str, question: pictures.Question) -> str:
    record = {
        "image": name,
        "question": question.text,
        "answers": [question.answer],
        "task": question.task,
        "metric": "exact",
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def write(folder: Path, questions: int, seed: int, split: str) -> int:
    """Fills an empty folder; the number of pictures. A picture gives one question of a task at most."""
    missing = quotas(questions)
    count = 0
    with (
        open(folder / QUESTIONS_FILE, "w", encoding="utf-8") as out,
        tqdm(total=questions, unit=" questions", file=sys.stderr) as bar,
    ):
        index = seed * SEED_STRIDE
        while missing.total():
            task, most = missing.most_common(1)[0]
            sample = pictures.make(index, split, KIND_FOR[task])
            index += 1
            wanted = {
                question.task: question
                for question in sample.questions
                if missing[question.task] > max(0, most - SLACK)
            }
            if not wanted:
                continue
            name = f"{count:05d}.png"
            sample.image.save(folder / name)
            count += 1
            for question in wanted.values():
                missing[question.task] -= 1
                out.write(line(name, question))
                bar.update()
    return count


def write_pairs(folder: Path, questions: int, seed: int, split: str) -> int:
    """Two questions on each picture, answered from parts of it that are far from each other."""
    count, index, kinds = 0, seed * SEED_STRIDE, list(dict.fromkeys(KIND_FOR.values()))
    with (
        open(folder / QUESTIONS_FILE, "w", encoding="utf-8") as out,
        tqdm(total=questions, unit=" questions", file=sys.stderr) as bar,
    ):
        while 2 * count < questions:
            sample = pictures.make(index, split, kinds[index % len(kinds)])
            index += 1
            pair = far_apart(sample)
            if pair:
                name = f"{count:05d}.png"
                sample.image.save(folder / name)
                out.writelines(line(name, question) for question in pair)
                count += 1
                bar.update(2)
    return count


def far_apart(sample: pictures.Sample) -> tuple[pictures.Question, pictures.Question] | None:
    """The first two questions whose answers are seen far from each other."""
    from training.pointing import middle_of_answer  # here, as it needs torch
    from training.vocabulary import Vocabulary

    vocabulary = Vocabulary.read()
    places = [
        (question, middle_of_answer(sample, question, vocabulary))
        for question in sample.questions
        if question.task in pictures.TASKS and question.task not in WHOLE_PICTURE
    ]
    for (first, a), (second, b) in itertools.combinations(places, 2):
        if a and b and math.dist(a, b) >= APART:
            return first, second
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.testset", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--questions", type=int, default=2000, help="in all, evenly over the tasks (2000)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--split", choices=pictures.SPLITS, default="test")
    parser.add_argument(
        "--pairs", action="store_true", help="two questions on each picture, for --follow-up; tasks as they come"
    )
    args = parser.parse_args(arguments)
    if args.questions < len(pictures.TASKS):
        return fail(f"--questions {args.questions} is too few: at least {len(pictures.TASKS)}, one for each task.")
    if args.output.exists():
        return fail(f"'{args.output}' exists already: name a new folder, or remove it first.")
    if not args.output.parent.is_dir():
        return fail(f"There is no folder '{args.output.parent}' to make '{args.output.name}' in.")
    partial = Path(tempfile.mkdtemp(prefix=f".{args.output.name}.", dir=args.output.parent))
    try:
        count = (write_pairs if args.pairs else write)(partial, args.questions, args.seed, args.split)
        partial.chmod(0o755)
        partial.rename(args.output)
    except ModuleNotFoundError as error:
        return fail(str(error))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.questions} questions about {count} pictures", file=sys.stderr)
    print(args.output / QUESTIONS_FILE)
    return 0


def fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

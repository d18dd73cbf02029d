"""Writes pictures and questions for `halfv eval`: python -m demo.testset -o DIR"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from demo import scenes

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
SLACK = 3  # how far a task may run ahead of the one that lacks most, so that every stretch of the file is even


def quotas(questions: int) -> Counter[str]:
    """How many questions each task gets: evenly, the first ones one more where it does not divide."""
    each, more = divmod(questions, len(scenes.TASKS))
    return Counter({task: each + (index < more) for index, task in enumerate(scenes.TASKS)})


def write(folder: Path, questions: int, seed: int, split: str) -> int:
    """Fills an empty folder; the number of pictures. A picture gives one question of a task at most."""
    missing = quotas(questions)
    pictures = 0
    with (
        open(folder / QUESTIONS_FILE, "w", encoding="utf-8") as out,
        tqdm(total=questions, unit=" questions", file=sys.stderr) as bar,
    ):
        index = seed * SEED_STRIDE
        while missing.total():
            task, most = missing.most_common(1)[0]
            sample = scenes.make(index, split, KIND_FOR[task])
            index += 1
            wanted = {
                question.task: question
                for question in sample.questions
                if missing[question.task] > max(0, most - SLACK)
            }
            if not wanted:
                continue
            name = f"{pictures:05d}.png"
            sample.image.save(folder / name)
            pictures += 1
            for question in wanted.values():
                missing[question.task] -= 1
                line = {
                    "image": name,
                    "question": question.text,
                    "answers": [question.answer],
                    "task": question.task,
                    "metric": "exact",
                }
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                bar.update()
    return pictures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.testset", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--questions", type=int, default=2000, help="in all, evenly over the tasks (2000)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--split", choices=scenes.SPLITS, default="test")
    args = parser.parse_args(arguments)
    if args.questions < len(scenes.TASKS):
        return fail(f"--questions {args.questions} is too few: at least {len(scenes.TASKS)}, one for each task.")
    if args.output.exists():
        return fail(f"'{args.output}' exists already: name a new folder, or remove it first.")
    if not args.output.parent.is_dir():
        return fail(f"There is no folder '{args.output.parent}' to make '{args.output.name}' in.")
    partial = Path(tempfile.mkdtemp(prefix=f".{args.output.name}.", dir=args.output.parent))
    try:
        pictures = write(partial, args.questions, args.seed, args.split)
        partial.chmod(0o755)
        partial.rename(args.output)
    except ModuleNotFoundError as error:
        return fail(str(error))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.questions} questions about {pictures} pictures", file=sys.stderr)
    print(args.output / QUESTIONS_FILE)
    return 0


def fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

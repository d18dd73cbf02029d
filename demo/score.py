"""`python -m demo.score`: accuracy by task on a test set of demo.testset, through the runtime.

`halfv eval` measures more; this is the gate for the model card, on the model's own answers alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from demo.testset import QUESTIONS_FILE
from halfv_edge import default_model
from halfv_edge.engine import Model
from halfv_edge.eval.intervals import wilson
from halfv_edge.eval.metrics import exact

MAX_TOKENS = 72


def answers(model: Model, folder: Path, questions: list[dict]) -> list[str]:
    """Greedy answers, each in a conversation of its own."""
    given = []
    for question in tqdm(questions, unit=" questions", file=sys.stderr):
        with model.chat(mode="exact") as chat:
            picture = folder / question["image"]
            given.append(chat.answer(question["question"], picture, temperature=0, max_tokens=MAX_TOKENS))
    return given


def by_task(questions: list[dict], given: list[str]) -> dict[str, tuple[float, int]]:
    """Right ones and all."""
    found: dict[str, list[float]] = defaultdict(list)
    for question, answer in zip(questions, given, strict=True):
        found[question["task"]].append(exact(answer, question["answers"]))
    return {task: (sum(right), len(right)) for task, right in found.items()}


def table(scores: dict[str, tuple[float, int]]) -> str:
    lines = ["| task | accuracy | 95% interval | questions |", "|---|---|---|---|"]
    for task, (right, n) in scores.items():
        low, high = wilson(right, n)
        lines.append(f"| {task} | {right / n:.1%} | {low:.1%} to {high:.1%} | {n} |")
    mean = sum(right / n for right, n in scores.values()) / len(scores)
    return "\n".join([*lines, f"| mean of tasks | {mean:.1%} | | {sum(n for _, n in scores.values())} |"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.score", description="Accuracy by task on a test set.")
    parser.add_argument("testset", type=Path, help="a folder that demo.testset has written")
    parser.add_argument("--folder", type=Path, default=default_model.FOLDER, help="of model.gguf and mmproj.gguf")
    parser.add_argument("--profile", action="append", help="a file, off, or 'own': the model's; repeat to compare")
    parser.add_argument("--questions", type=int, help="only the first so many")
    parser.add_argument("--answers", type=Path, help="write each answer here, as JSON lines")
    args = parser.parse_args()
    lines = (args.testset / QUESTIONS_FILE).read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines][: args.questions]
    told = []
    for profile in args.profile or ["off"]:
        paths = args.folder / default_model.MODEL, args.folder / default_model.MMPROJ
        with Model.load(*paths, n_ctx=1024, profile=None if profile == "own" else profile) as model:
            given = answers(model, args.testset, questions)
        print(f"profile {profile}\n\n{table(by_task(questions, given))}\n", flush=True)
        told += [
            {"profile": profile, "given": answer} | question for question, answer in zip(questions, given, strict=True)
        ]
    if args.answers:
        args.answers.write_text("".join(json.dumps(line) + "\n" for line in told), encoding="utf-8")


if __name__ == "__main__":
    main()

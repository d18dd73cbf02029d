"""The whole evaluation: every question under every policy, in turn, with results kept on the disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from halfv_edge.engine import images
from halfv_edge.engine.context import n_cells
from halfv_edge.engine.images import Picture
from halfv_edge.engine.stats import Stats
from halfv_edge.errors import HalfVError, RunError
from halfv_edge.measure.eval.asking import Asker, PolicyAnswer
from halfv_edge.measure.eval.metrics import tidy
from halfv_edge.measure.eval.questions import Question
from halfv_edge.measure.policies import Policy
from halfv_edge.measure.work_file import WorkFile

UNDO_BYTES = 512 << 20  # as in a conversation
MEASURED = (
    "text",
    "kl",
    "encode_s",
    "ahead_s",
    "enter_s",
    "flops",
    "n_patches",
    "n_visual",
    "n_kept",
    "n_deep",
    "unpruned",
)

Result = dict[str, Any]  # of one question: what MEASURED names, and its score


@dataclasses.dataclass(frozen=True, slots=True)
class WayToTalk:
    """How a conversation is held."""

    name: str
    policy: Policy
    top_up: bool


def open_work(path: Path | None, asker: Asker, follow_up: bool) -> WorkFile:
    """Results of this model and these settings; those of others are left alone."""
    model, options = asker.model, asker.runtime.options
    settings = {
        "kind": "follow-up" if follow_up else "eval",
        "model": [model.path.name, model.path.stat().st_size],
        "encoder": [model.encoder.path.name, model.encoder.path.stat().st_size],
        "image_max_tokens": options.image_max_tokens,
        "mmproj_type": options.mmproj_type,
        "max_tokens": asker.max_tokens,
        "kl_tokens": asker.kl_tokens,
    }
    settings["mark"] = mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    if path is not None and path.exists():
        with path.open("rb") as file:
            first = file.readline(1 << 16)
        if first.strip() and mark.encode() not in first:
            raise HalfVError(
                f"{path} has results of another model or other settings: name another file with {{work}}.",
                settings={"work": None},
            )
    return WorkFile(path, settings)


def key_of(policy: Policy, question: Question) -> str:
    """Of a result: it changes with what the policy does and with the question."""
    what = repr((dataclasses.replace(policy, name=""), question.question, question.answers, question.metric))
    return f"{policy.name} {question.key} {hashlib.sha256(what.encode()).hexdigest()[:12]}"


class Evaluation:
    """The first policy is the unpruned model, with which the others are compared."""

    def __init__(
        self, asker: Asker, questions: Sequence[Question], policies: Sequence[Policy], work: WorkFile,
        tick: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.asker = asker
        self.questions = list(questions)
        self.policies = list(policies)
        self.work = work
        self.tick = tick
        self._picture: tuple[Path, Picture] | None = None

    def run(self) -> dict[str, list[Result]]:
        """Results per policy, in the order of the questions."""
        for question in self.questions:
            self._ask(question)
        found = {
            policy.name: [self.work.results[key_of(policy, question)] for question in self.questions]
            for policy in self.policies
        }
        for policy in self.policies:
            check_pruned(policy, found[policy.name])
        return found

    def _ask(self, question: Question) -> None:
        missing = [policy for policy in self.policies if key_of(policy, question) not in self.work.results]
        if missing:
            base = self.policies[0]
            picture = self._load(question)
            teacher = self.asker.ask(base, picture, question.question)
            for policy in missing:
                answer = teacher if policy is base else self.asker.ask(policy, picture, question.question, teacher)
                self.work.add(key_of(policy, question), self._result(question, answer, teacher))
        for _ in self.policies:
            self.tick()

    def _load(self, question: Question) -> Picture:
        if self._picture is None or self._picture[0] != question.image:
            self._picture = question.image, images.load(question.image)
        return self._picture[1]

    @staticmethod
    def _result(question: Question, answer: PolicyAnswer, teacher: PolicyAnswer) -> Result:
        return {name: getattr(answer, name) for name in MEASURED} | {
            "score": question.score(answer.text),
            "agrees": tidy(answer.text) == tidy(teacher.text),
        }


class Conversations:
    """Questions on the same picture as turns of one conversation."""

    def __init__(
        self, asker: Asker, dialogues: Sequence[Sequence[Question]], ways: Sequence[WayToTalk], work: WorkFile,
        tick: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.asker = asker
        self.dialogues = list(dialogues)
        self.ways = list(ways)
        self.work = work
        self.tick = tick

    def run(self) -> dict[str, list[list[Result]]]:
        """Results per way, per dialogue, per turn."""
        found: dict[str, list[list[Result]]] = {way.name: [] for way in self.ways}
        for number, dialogue in enumerate(self.dialogues):
            for way in self.ways[:: 1 if number % 2 else -1]:
                key = f"{way.name} {way.top_up} " + key_of(way.policy, dialogue[0]) + f" {len(dialogue)}"
                if key not in self.work.results:
                    self.work.add(key, self._talk(way, dialogue))
                found[way.name].append(self.work.results[key])
                self.tick()
        for way in self.ways:
            check_pruned(way.policy, [turns[0] for turns in found[way.name]])
        return found

    def _talk(self, way: WayToTalk, dialogue: Sequence[Question]) -> list[Result]:
        picture = images.load(dialogue[0].image)
        encoder = self.asker.encoder(way.policy)
        encoded = encoder.tokens(picture)
        encoder.encode(encoded)  # so that no way pays for it
        words = sum(len(question.question) for question in dialogue)  # bytes are never fewer than tokens
        room = n_cells(encoded.chunks) + words + len(dialogue) * (self.asker.max_tokens + 64)
        results = []
        with self.asker.chat(way.policy, room, UNDO_BYTES if way.top_up else 0) as chat:
            for number, question in enumerate(dialogue):
                if number == 0:
                    chat.add_image(picture)  # before Enter, whatever can be done by then
                text = chat.answer(question.question, temperature=0, max_tokens=self.asker.max_tokens)
                results.append({"text": text, "score": question.score(text)} | _counts(chat.stats))
        return results


def _counts(stats: Stats) -> Result:
    counts = {name: getattr(stats, name) for name in ("n_visual", "n_kept", "n_deep", "unpruned")}
    return counts | {"enter_s": stats.ttft_sec, "ahead_s": stats.ahead_sec}


def check_pruned(policy: Policy, results: Sequence[Result]) -> None:
    """It is an error when a policy that prunes never did."""
    if not policy.profile or any(not result["unpruned"] for result in results):
        return
    why = results[-1]["unpruned"]
    raise RunError(f"The policy {policy.name} was to prune and never did: {why}, of {len(results)} pictures.")

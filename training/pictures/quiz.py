"""Questions about one picture."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.pictures.phrases import phrase

LONGEST_ANSWER = 60
# Groups that every picture could have: kept only so often
_SELDOM = {"caption/picture": 0.4, "existence/word": 0.6}


@dataclass(frozen=True)
class Question:
    task: str
    text: str
    answer: str
    group: str  # of phrases, such as "existence/thing"


class Quiz:
    """Collects what can be asked; `choose` keeps a varied part of it."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self._groups: dict[str, list[Question]] = {}

    def add(self, group: str, answer: object, **slots: object) -> None:
        answer = str(answer)
        if len(answer) > LONGEST_ANSWER:
            return
        text = phrase(self.rng, group, {name: str(value) for name, value in slots.items()})
        self._groups.setdefault(group, []).append(Question(group.split("/")[0], text, answer, group))

    def coin(self) -> bool:
        return self.rng.random() < 0.5

    def choose(self, most: int) -> list[Question]:
        """Questions in random order, from as many groups as there are."""
        for name, often in _SELDOM.items():
            if self.rng.random() > often and len(self._groups) > most // 2:
                self._groups.pop(name, None)
        for group in self._groups.values():
            self.rng.shuffle(group)
        chosen: list[Question] = []
        texts: set[str] = set()
        while len(chosen) < most and self._groups:
            for name in self.rng.sample(sorted(self._groups), len(self._groups)):
                question = self._groups[name].pop()
                if not self._groups[name]:
                    del self._groups[name]
                if question.text.lower() not in texts and len(chosen) < most:
                    texts.add(question.text.lower())
                    chosen.append(question)
        self.rng.shuffle(chosen)
        return chosen

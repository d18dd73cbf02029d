"""Random conversations, as scripts: a setting and a list of steps that each make sense wherever they stand.

A step names sequences and shares of what is there, never absolute positions, so a script from which steps were taken
out is still a script. That is what makes failing ones small.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from .teller import ARCHS, N_ADAPTERS, PROFILES

GRIDS = ((2, 3), (3, 3), (3, 4), (4, 5), (6, 6), (5, 11), (8, 8))  # the first two are under min_visual_tokens

Step = tuple[Any, ...]  # the name of a Player method and its arguments


@dataclass
class Script:
    setting: dict[str, Any]
    steps: list[Step]

    def dump(self) -> str:
        lines = ",\n  ".join(json.dumps(step) for step in self.steps)
        return f'{{"setting": {json.dumps(self.setting)},\n "steps": [\n  {lines}\n ]}}\n'

    @classmethod
    def parse(cls, text: str) -> Script:
        data = json.loads(text)
        return cls(data["setting"], [tuple(step) for step in data["steps"]])


class Writer:
    """Writes one script."""

    def __init__(self, seed: int, keep_all: bool = False) -> None:
        """`keep_all`: nothing is ever removed but a whole sequence."""
        self.rng = random.Random(seed)
        self.keep_all = keep_all
        self.prepares = random.Random(f"prepares {seed}").random() < 0.25  # every question its pictures
        self.n_seq = self.rng.choice((1, 2, 3))
        self.quick = self.rng.random() < 0.15  # with halfv_prepare and halfv_topup, which promise less
        self.unified = True
        self.steps: list[Step] = []

    def seq(self) -> int:
        return self.rng.randrange(self.n_seq)

    def write(self) -> Script:
        rng = self.rng
        setting = {
            "arch": rng.choice(ARCHS),
            "profile": rng.choice([*PROFILES, "freeze", "top"]),
            "n_seq": self.n_seq,
            "unified": rng.random() < 0.5,
            "n_ctx": rng.choice((256, 256, 512, 1024)),
            "n_batch": rng.choice((24, 64, 128)),
            "n_ubatch": rng.choice((5, 16, 32, 128)),
            "prepares": self.prepares,
        }
        self.unified = setting["unified"]
        self.open()
        makers = [self.talk, self.feed, self.ask, self.change_memory, self.change_context, self.change_setting]
        for _ in range(rng.randint(4, 16)):
            rng.choices(makers, (3, 5, 3, 3, 2, 1))[0]()
        self.steps.append(("finish",))
        return Script(setting, self.steps)

    def open(self) -> None:
        """Most conversations start with text and a picture each."""
        for seq in range(self.n_seq):
            if self.rng.random() < 0.8:
                self.steps.append(("text", seq, self.rng.randint(1, 6), False))
                self.steps.append(("picture", seq, *self.rng.choice(GRIDS), True))

    def talk(self) -> None:
        rng = self.rng
        if rng.random() < 0.5:
            self.steps.append(("picture", self.seq(), *rng.choice(GRIDS), rng.random() < 0.7))
        else:
            self.steps.append(("text", self.seq(), rng.randint(1, 8), rng.random() < 0.2))

    def feed(self) -> None:
        rng = self.rng
        seqs = rng.sample(range(self.n_seq), rng.randint(1, self.n_seq))
        sizes = [rng.choice((1, 3, 8, 20, 64)) for _ in seqs]
        abort = rng.randint(0, 300) if rng.random() < 0.2 else -1
        self.steps.append(("feed", list(zip(seqs, sizes, strict=True)), rng.randrange(1000), abort))

    def ask(self) -> None:
        """Everything that a sequence has to say, and a question."""
        rng, seq = self.rng, self.seq()
        self.steps.append(("text", seq, rng.randint(1, 8), True))
        if rng.random() < 0.7:
            self.steps.append(("say_all", seq))

    def change_memory(self) -> None:
        rng = self.rng
        what = rng.choices(("cut", "middle", "copy", "keep", "clear"), (6, 2, 4, 0.5, 0.3))[0]
        if self.keep_all:
            steps = (("cut", self.seq(), 0.0), ("copy", self.seq(), self.seq(), 1.0, True), ("clear",))
            self.steps.append(rng.choices(steps, (1, 4, 0.3))[0])
        elif what == "cut":
            self.steps.append(("cut", self.seq(), rng.choice((0.0, 0.3, 0.6, 0.8, 0.9, 0.95))))
        elif what == "middle":
            start = rng.random() * 0.6
            self.steps.append(("middle", self.seq(), start, start + rng.random() * 0.4, rng.random() < 0.8))
        elif what == "copy":
            self.steps.append(("copy", self.seq(), self.seq(), rng.choice((1.0, 1.0, 0.5, 0.8)), rng.random() < 0.7))
        elif what == "keep":
            self.steps.append(("keep", self.seq()))
        else:
            self.steps.append(("clear",))

    def change_context(self) -> None:
        """llama.cpp copies between streams at its next decode; states before that have other cells."""
        rng = self.rng
        since = next((step[0] for step in reversed(self.steps) if step[0] in ("copy", "say_all")), "")
        if since == "copy" and not self.unified:
            seq = self.seq()
            self.steps += [("text", seq, 1, True), ("say_all", seq)]
        what = rng.choices(("save", "load", "move"), (3, 3, 1))[0]
        if what == "save":
            self.steps.append(("save", self.seq()))
        elif what == "load":
            self.steps.append(("load", rng.randrange(4), self.seq()))
        else:
            self.steps.append(("move", rng.choice((5, 16, 64))))

    def change_setting(self) -> None:
        rng = self.rng
        if self.quick and rng.random() < 0.7:
            self.steps.append((rng.choice(("prepare", "topup")), self.seq()))
        elif rng.random() < 0.5:
            self.steps.append(("pruning", rng.random() < 0.5))
        else:
            self.steps.append(("adapt", rng.randrange(N_ADAPTERS)))

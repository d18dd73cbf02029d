"""`python -m training.train_teacher`: trains the demo model's teacher from nothing, for as many minutes as it is given.

First the vision encoder alone learns what is in each patch, then encoder and language model learn to answer. A run
that was stopped, or killed, goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from training.batches import HEADS, NOTHING, Batch, Drawer, batches
from training.optimizer import Optimizer
from training.teacher import IMAGE_SIZE, N_AFTER, N_BEFORE, N_PREFIX, Teacher, TeacherShape, normalised
from training.vocabulary import FIRST_WORD, Vocabulary

MUON_RATE, ADAM_RATE = 0.02, 2e-3
WARM_UP, DECAY, LEAST = 0.01, 0.3, 0.03  # shares of the time; of the rate in the end
CHECKPOINT_SEC, VALIDATE_SEC = 150, 300
PATCH_BATCHES = 3  # one batch in so many is for the encoder alone, once answers are learnt
N_VALIDATE = 64  # pictures
# layers whose first head is taught to look at what a token is about, and the next token of an answer
ABOUT_LAYERS, AHEAD_LAYERS = (3,), (5, 8)
POINTING_WEIGHT = 0.5
PATCH_WEIGHT = 0.3  # of what is learnt per patch, once answers are learnt too
RARE = 4.0  # a patch where something is weighs more than an empty one
FIRST_VALIDATION = 0


class PatchHeads(nn.Module):
    """What the training asks about every patch; thrown away afterwards."""

    def __init__(self, n_vision: int):
        super().__init__()
        self.all = nn.Linear(n_vision, sum(HEADS.values()))

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and which labels [B, patches, heads] were found."""
        loss, found = features.new_zeros((), dtype=torch.float32), []
        for i, logits in enumerate(self.all(features).split(list(HEADS.values()), dim=-1)):
            wanted = labels[..., i].long()
            each = functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="none")
            weight = 1 + (RARE - 1) * (wanted.flatten() > 0)
            loss = loss + (each * weight).sum() / weight.sum()
            found.append(logits.argmax(-1) == wanted)
        return loss, torch.stack(found, dim=-1)


@dataclass
class Progress:
    sec: float = 0.0  # of training
    step: int = 0
    pictures: int = 0


class Run:
    side = IMAGE_SIZE  # of the pictures it learns from
    grid: tuple[int, int] | None = None  # of their tokens, for M-RoPE
    rate_later, encoder_later = 1.0, 0.25  # of all rates, and of the encoder's, once answers are learnt

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        vocabulary: Vocabulary,
        minutes: float,
        patch_minutes: float,
        together_minutes: float,
    ):
        self.folder, self.vocabulary = folder, vocabulary
        self.model = model
        self.heads = PatchHeads(model.n_features)
        both = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.optimizer = Optimizer(both.named_parameters())
        both.bfloat16()
        self.progress, self.n_validate = Progress(), N_VALIDATE
        self.end_sec, self.patch_sec, self.together_sec = (60 * m for m in (minutes, patch_minutes, together_minutes))
        self.checkpoint, self.checkpoint_sec = folder / "checkpoint.pt", CHECKPOINT_SEC
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.progress = Progress(**saved["progress"])
            say(f"going on from {self.progress.sec / 60:.1f} minutes, {self.progress.pictures} pictures")

    def save(self) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        saved = {
            "shape": self.model.shape.to_dict(),
            "words": self.vocabulary.words,
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }
        torch.save(saved, partial)
        os.replace(partial, self.checkpoint)
        say(f"saved after {self.progress.sec / 60:.1f} minutes")

    def log(self, **values: object) -> None:
        line = vars(self.progress) | {"sec": round(self.progress.sec, 1)} | values
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        say(json.dumps(line))

    @property
    def answers(self) -> bool:
        return self.progress.sec >= self.patch_sec

    @property
    def together(self) -> bool:
        """Encoder and language model learn from answers both."""
        return self.progress.sec >= self.together_sec

    def rate(self) -> float:
        """Each of the two parts warms up; the rate falls at the end of the whole."""
        since = self.progress.sec - (self.patch_sec if self.answers else 0)
        warm = min(1.0, since / (WARM_UP * self.end_sec) + 0.02)
        left = max(0.0, self.end_sec - self.progress.sec) / (DECAY * self.end_sec)
        return warm * max(LEAST, min(1.0, left)) * (self.rate_later if self.answers else 1.0)

    def step(self, batch: Batch) -> dict[str, float]:
        loss, figures = self.loss(batch)
        loss.backward()
        rate = self.rate()
        self.optimizer.step(MUON_RATE * rate, ADAM_RATE * rate, self.encoder_later if self.answers else 1.0)
        return figures

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        pixels, figures = normalised(torch.from_numpy(batch.pixels)).bfloat16(), {}
        if batch.patches_only or self.together:
            features = self.model.vision(pixels)
            labels = torch.from_numpy(batch.labels)
            patch_loss, found = self.heads(features, labels)
            figures = {"patch_loss": patch_loss.item()} | char_accuracy(found, labels)
            if batch.patches_only:
                return patch_loss, figures
        else:
            with torch.no_grad():
                features = self.model.vision(pixels)
        loss, more = self.answered(batch, features)
        return (loss + PATCH_WEIGHT * patch_loss if self.together else loss), figures | more

    def answered(
        self, batch: Batch, features: Tensor, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """What is lost on answers, and on pointing too unless the picture was shrunk to a grid of tokens."""
        logits, targets, _, looked = self.read(batch, features, grid)
        weights = torch.from_numpy(batch.weights)[torch.from_numpy(batch.targets) != NOTHING]
        each = functional.cross_entropy(logits.float(), targets, reduction="none")
        loss = (each * weights).sum() / weights.sum()
        right = (logits.argmax(-1) == targets).float().mean().item()
        if grid:  # where patches are is known at full size only
            return loss, {"loss_small": loss.item(), "tokens_small": right}
        pointing = pointing_loss(looked, batch, self.vocabulary.assistant)
        figures = {"loss": loss.item(), "tokens": right, "pointing": pointing.item()}
        return loss + POINTING_WEIGHT * pointing, figures

    def read(
        self, batch: Batch, features: Tensor, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, list]:
        """Logits and targets where answers are, the question of each, and where the first heads look."""
        language = self.model.language
        text, positions, mask = (torch.from_numpy(array) for array in (batch.text, batch.positions, batch.mask))
        mask = mask[:, :, N_PREFIX - (N_BEFORE + features.shape[1] + N_AFTER) :]
        around = torch.tensor(self.vocabulary.around)
        states, looked = language(around, self.model.projector(features), text, positions, mask, grid or self.grid)
        targets = torch.from_numpy(batch.targets)
        wanted = targets != NOTHING
        return language.head(states[wanted]), targets[wanted], torch.from_numpy(batch.question)[wanted], looked

    @torch.no_grad()
    def validate(self) -> dict[str, object]:
        """Answers that would be right token for token, by task; those of chained questions too."""
        right, asked, chars = Counter(), Counter(), []
        drawn = batches("validation", 16, FIRST_VALIDATION, self.vocabulary, most=10, side=self.side)
        for _ in range(self.n_validate // 16):
            batch = next(drawn)
            features = self.model.vision(normalised(torch.from_numpy(batch.pixels)).bfloat16())
            labels = torch.from_numpy(batch.labels)
            chars.append(char_accuracy(self.heads(features, labels)[1], labels)["chars"])
            if not self.answers:
                continue
            logits, targets, question, _ = self.read(batch, features)
            is_wrong = logits.argmax(-1) != targets
            wrong = set(question[is_wrong].tolist())
            for number, task in enumerate(batch.tasks):
                asked[task] += 1
                right[task] += number not in wrong
        figures: dict[str, object] = {"chars": round(sum(chars) / len(chars), 4)}
        if asked:
            figures["accuracy"] = {task: round(right[task] / asked[task], 3) for task in sorted(asked)}
            figures["all"] = round(sum(right.values()) / sum(asked.values()), 4)
        return {"validation": figures}

    def train(self, size: int, core: int | None) -> None:
        started_with = self.progress.sec
        begin = time.monotonic()
        overhead = saved = validated = noted = 0.0
        patches_only = not self.answers

        def drawing() -> Drawer:
            patches = PATCH_BATCHES if self.answers else 1
            return Drawer(size, self.progress.pictures, self.vocabulary.words, core, patches, self.side)

        drawer = drawing()
        sums: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        n_noted = 0
        try:
            while self.progress.sec < self.end_sec:
                figures = self.step(next(drawer))
                self.progress.step += 1
                self.progress.pictures += size
                self.progress.sec = started_with + time.monotonic() - begin
                sums.update(figures)
                counts.update(figures.keys())
                n_noted += 1
                passed = self.progress.sec - started_with - overhead
                if passed - noted > 20:
                    means = {name: round(value / counts[name], 4) for name, value in sums.items()}
                    self.log(**means, per_sec=round(n_noted * size / (passed - noted), 2), rate=round(self.rate(), 3))
                    noted, n_noted = passed, 0
                    sums.clear()
                    counts.clear()
                if passed - saved > self.checkpoint_sec:
                    self.save()
                    saved = passed
                if patches_only and self.answers:
                    drawer.close()
                    drawer, patches_only = drawing(), False
                if passed - validated > VALIDATE_SEC:
                    self.log(**self.validate())
                    validated = passed
            self.log(**self.validate())
            self.save()
        finally:
            drawer.close()


def pointing_loss(looked: list[Tensor], batch: Batch, assistant: int) -> Tensor:
    """How little the taught heads look at the patches that the text is about.

    Words count as much as letters, and where an answer begins as much as how it goes on.
    """
    text = torch.from_numpy(batch.text)
    loss = torch.zeros(())
    for layers, patches, is_rare in (
        (ABOUT_LAYERS, batch.about, text >= FIRST_WORD),
        (AHEAD_LAYERS, batch.ahead, text == assistant),
    ):
        there = torch.from_numpy(patches)
        for taught in (there.any(-1) & is_rare, there.any(-1) & ~is_rare):
            for layer in layers if taught.any() else ():
                share = (looked[layer] * there).sum(-1)[taught].float()
                loss = loss - (share + 1e-4).log().mean() / len(layers)
    return loss


def char_accuracy(found: Tensor, labels: Tensor) -> dict[str, float]:
    n_chars = [i for i, name in enumerate(HEADS) if name.startswith("char")]
    there = labels[..., n_chars] > 0
    centre = [i for i, name in enumerate(HEADS) if name == "centre"]
    drawn = labels[..., centre] > 0
    return {
        "chars": (found[..., n_chars] & there).sum().item() / max(1, there.sum().item()),
        "shapes": (found[..., centre] & drawn).sum().item() / max(1, drawn.sum().item()),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.train_teacher", description="Train the teacher on this CPU."
    )
    parser.add_argument("folder", type=Path, help="of checkpoint.pt and log.jsonl; a run in it goes on")
    parser.add_argument("--minutes", type=float, default=71, help="in all (%(default)g)")
    parser.add_argument("--patch-minutes", type=float, default=25, help="of them for the encoder alone (%(default)g)")
    parser.add_argument(
        "--together-minutes", type=float, default=64, help="when the encoder begins to learn from answers (%(default)g)"
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures per step (%(default)d)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)d)")
    parser.add_argument("--draw-core", type=int, metavar="N", help="core of the process that draws")
    parser.add_argument("--tiny", action="store_true", help="two layers, saved every second, to try this out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.read()
    tiny = {"n_vision_layer": 1, "n_first": 32, "n_second": 64} if args.tiny else {}
    shape = TeacherShape(len(vocabulary), **tiny)
    torch.manual_seed(0)
    run = Run(args.folder, Teacher(shape), vocabulary, args.minutes, args.patch_minutes, args.together_minutes)
    if args.tiny:
        run.checkpoint_sec, run.n_validate = 1, 16
    run.train(args.batch, args.draw_core)


if __name__ == "__main__":
    main()

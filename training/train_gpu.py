"""`python -m training.train_gpu`: trains the shipped demo model on, for a few minutes on one GPU.

Other processes draw, see `training.scenes`. The encoder may be made deeper. Weights are written every minute, in parts
of which `python -m training.join` makes a checkpoint.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import pickle
import queue
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from training import shipped
from training.batches import HEADS, NOTHING
from training.fast import Fast
from training.optimizer import Optimizer
from training.packing import HEAD_NAMES, NO_LABEL, Drawers, Packed, packed
from training.renderers.store import Reader
from training.scenes import MIXTURE, TOKENS, Scenes
from training.student import Student, StudentShape
from training.teacher import normalised
from training.train_teacher import ABOUT_LAYERS, ADAM_RATE, AHEAD_LAYERS, MUON_RATE, PATCH_WEIGHT, RARE
from training.vocabulary import FIRST_WORD, Vocabulary

SHIPPED = Path(__file__).parent.parent / "halfv_edge" / "hub" / "demo_model"
RATE, WARM_UP, DECAY, LEAST = 0.7, 0.02, 0.4, 0.02  # of the rates for small batches; shares of the time; of the rate
POINTING_WEIGHT = 0.3
SAVE_SEC, VALIDATE_SEC, LOG_SEC = 60, 120, 10
PART_BYTES = 15 << 20  # of a file of weights
MOST_FAILURES = 60  # steps
KEPT = 64  # batches that are learnt from again when none is ready
N_VALIDATE = {"drawn": 512, "web": 256, "plot": 64}  # pictures


@dataclass(slots=True)
class OnDevice:
    """A batch as the model takes it."""

    rows: int
    columns: int
    kind: str
    pixels: Tensor
    labels: Tensor
    alive: Tensor | None
    text: Tensor
    positions: Tensor
    group: Tensor
    wanted: Tensor  # flat places of text after which an answer's token follows
    targets: Tensor  # those tokens
    weights: Tensor
    about: Tensor
    ahead: Tensor

    @classmethod
    def of(cls, batch: Packed, device: torch.device) -> OnDevice:
        wanted = np.flatnonzero(batch.targets != NOTHING)

        def there(array: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

        return cls(
            batch.rows,
            batch.columns,
            batch.kind + (" with holes" if batch.holes else ""),
            torch.from_numpy(np.array(batch.pixels)).to(device),
            there(batch.labels, torch.long),
            there(batch.alive, torch.bool) if batch.holes else None,
            there(batch.text, torch.long),
            there(batch.positions, torch.long),
            there(batch.group, torch.long),
            there(wanted, torch.long),
            there(batch.targets.ravel()[wanted], torch.long),
            there(batch.weights.ravel()[wanted], torch.float32),
            there(batch.about, torch.long),
            there(batch.ahead, torch.long),
        )


class Feeder(threading.Thread):
    """Brings batches to the GPU while it computes."""

    def __init__(self, drawers: Drawers, device: torch.device):
        super().__init__(daemon=True)
        self.drawers, self.device = drawers, device
        self.ready: queue.Queue[OnDevice] = queue.Queue(maxsize=4)
        self.failed = False

    def run(self) -> None:
        stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        try:
            while True:
                taken = self.drawers.take(1.0)
                if taken is None:
                    continue
                batch, free = taken
                with torch.cuda.stream(stream):
                    found = OnDevice.of(batch, self.device)
                if stream:
                    stream.synchronize()
                free()
                self.ready.put(found)
        except Exception:
            traceback.print_exc()
            self.failed = True


class Heads(nn.Module):
    """What the training asks about every patch; thrown away afterwards."""

    def __init__(self, n_features: int):
        super().__init__()
        self.all = nn.Linear(n_features, sum(HEADS[name] for name in HEAD_NAMES))

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the share of characters that were found."""
        loss = features.new_zeros((), dtype=torch.float32)
        right, drawn = features.new_zeros(()), features.new_zeros(())
        for i, logits in enumerate(self.all(features).split([HEADS[name] for name in HEAD_NAMES], dim=-1)):
            wanted = labels[..., i].flatten()
            each = functional.cross_entropy(
                logits.flatten(0, 1).float(), wanted, reduction="none", ignore_index=NO_LABEL
            )
            weight = (1 + (RARE - 1) * (wanted > 0)) * (wanted != NO_LABEL)
            loss = loss + (each * weight).sum() / weight.sum().clamp(min=1)
            if HEAD_NAMES[i].startswith("char"):
                is_char = (wanted > 0) & (wanted != NO_LABEL)
                right = right + ((logits.flatten(0, 1).argmax(-1) == wanted) & is_char).sum()
                drawn = drawn + is_char.sum()
        return loss, right / drawn.clamp(min=1)


class Training:
    def __init__(self, model: Student, vocabulary: Vocabulary, device: torch.device, rate: float):
        self.model, self.vocabulary, self.device, self.peak = model, vocabulary, device, rate
        self.heads = Heads(model.n_features)
        both = nn.ModuleDict({"model": model, "heads": self.heads}).to(device)
        self.optimizer = Optimizer(both.named_parameters())
        both.bfloat16()
        self.fast = Fast(model)
        self.around = torch.tensor(vocabulary.around, device=device)

    def loss(self, batch: OnDevice) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.fast.see(normalised(batch.pixels).bfloat16(), batch.alive)
        patch_loss, chars = self.heads(features, batch.labels)
        loss, right, looked = self.answered(batch, features)
        pointing = self.pointing(batch, looked)
        figures = {"loss": loss, "tokens": right.float().mean(), "chars": chars, "pointing": pointing}
        figures = {name: value.detach() for name, value in figures.items()}
        return loss + PATCH_WEIGHT * patch_loss + POINTING_WEIGHT * pointing, figures

    def answered(self, batch: OnDevice, features: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        visual = self.model.projector(features)
        layers = dict.fromkeys((*ABOUT_LAYERS, *AHEAD_LAYERS), "")
        states, looked = self.fast.speak(visual, batch, (batch.rows, batch.columns), self.around, layers)
        logits = self.model.language.head(states.flatten(0, 1)[batch.wanted]).float()
        each = functional.cross_entropy(logits, batch.targets, reduction="none")
        loss = (each * batch.weights).sum() / batch.weights.sum().clamp(min=1e-6)
        return loss, logits.argmax(-1) == batch.targets, looked

    def pointing(self, batch: OnDevice, looked: dict[int, Tensor]) -> Tensor:
        """How little the taught heads look at what the text is about; as in `train_teacher`, but never waits."""
        loss = torch.zeros((), device=self.device)
        for layers, places, is_rare in (
            (ABOUT_LAYERS, batch.about, batch.text >= FIRST_WORD),
            (AHEAD_LAYERS, batch.ahead, batch.text == self.vocabulary.assistant),
        ):
            there = torch.zeros_like(looked[layers[0]]).flatten().index_fill_(0, places, 1.0)
            there = there.view_as(looked[layers[0]])
            has = there.any(-1)
            for taught in (has & is_rare, has & ~is_rare):
                for layer in layers:
                    share = (looked[layer] * there).sum(-1).float()
                    missed = (share + 1e-4).log() * taught
                    loss = loss - missed.sum() / taught.sum().clamp(min=1) / len(layers)
        return loss

    def step(self, batch: OnDevice, rate: float) -> dict[str, Tensor]:
        loss, figures = self.loss(batch)
        loss.backward()
        self.optimizer.step(MUON_RATE * rate, ADAM_RATE * rate, 1.0)
        return figures

    @torch.no_grad()
    def validate(self, batches: list[Packed]) -> dict[str, object]:
        """Answers that are right token for token, as greedy ones would be, by kind of picture and task."""
        right, asked = Counter(), Counter()
        was, self.fast.is_compiled = self.fast.is_compiled, False
        for each in batches:
            batch = OnDevice.of(each, self.device)
            features = self.fast.see(normalised(batch.pixels).bfloat16(), batch.alive)
            found = self.answered(batch, features)[1].cpu().numpy()
            wrong = set(each.question.ravel()[np.flatnonzero(each.targets != NOTHING)][~found].tolist())
            for number, task in enumerate(each.tasks):
                for name in (f"{each.kind}/{task}", f"{each.kind}/all"):
                    asked[name] += 1
                    right[name] += number not in wrong
        self.fast.is_compiled = was
        return {name: round(right[name] / asked[name], 3) for name in sorted(asked)} | {
            "asked": sum(asked.values()) // 2
        }

    def save(self, folder: Path) -> None:
        """Half precision, in parts."""
        weights = {name: state["master"].half().cpu() for name, state in self.optimizer.state.items()}
        saved = {"shape": self.model.shape.to_dict(), "words": self.vocabulary.words, "weights": weights}
        whole = io.BytesIO()
        torch.save(saved, whole)
        data = whole.getbuffer()
        for number, start in enumerate(range(0, len(data), PART_BYTES)):
            partial_file = folder / "weights.partial"
            partial_file.write_bytes(data[start : start + PART_BYTES])
            os.replace(partial_file, folder / f"weights-{number}.part")


def seeds_apart(number: int, pages: list[Reader], fonts: Path | None, tokens: int, mixture: dict[str, float]) -> Scenes:
    return Scenes(number, pages, fonts, "train", tokens, mixture)


def draw_validation(
    file: Path, vocabulary: Vocabulary, pages: list[Reader], fonts: Path | None, counts: dict[str, int], tokens: int
) -> None:
    """What to validate with, in a file: in a process of its own, so that training need not wait."""
    found = []
    for kind, count in counts.items():
        if (kind == "web" and not pages) or (kind == "plot" and not fonts):
            continue
        scenes = Scenes(0, pages, fonts, "validation", tokens, {kind: 1.0})
        scenes.rng = random.Random(kind)
        drawn = 0
        while drawn < count:
            scene = scenes.next()
            scene.holes = False
            drawn += len(scene.samples)
            found.append(packed(scene, vocabulary, scenes.rng, chained=0.0))
    partial_file = file.with_suffix(".partial")
    partial_file.write_bytes(pickle.dumps(found))
    os.replace(partial_file, file)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Run:
    def __init__(self, training: Training, feeder: Feeder, folder: Path, begin: float, end: float):
        self.training, self.feeder, self.folder = training, feeder, folder
        self.begin, self.end = begin, end
        self.steps = self.pictures = self.again = self.failures = self.hole_failures = 0
        self.kept: deque[OnDevice] = deque(maxlen=KEPT)
        self.figures: list[dict[str, Tensor]] = []
        self.log_file = (folder / "log.jsonl").open("a", encoding="utf-8")

    def log(self, **values: object) -> None:
        line = json.dumps(
            {"sec": round(time.monotonic() - self.begin, 1), "step": self.steps, "pictures": self.pictures} | values
        )
        print(line, file=self.log_file, flush=True)
        say(line)

    def rate(self) -> float:
        now = time.monotonic()
        whole = self.end - self.begin
        warm = min(1.0, (self.steps + 1) / 100)
        left = max(0.0, self.end - now) / (DECAY * whole)
        return self.training.peak * warm * max(LEAST, min(1.0, left))

    def batch(self) -> OnDevice:
        """A new one if there is one, otherwise one of the last."""
        while True:
            if self.feeder.failed:
                if not self.kept:
                    raise RuntimeError("no pictures: the errors are above")
                self.again += 1
                return self.kept[np.random.randint(len(self.kept))]
            try:
                found = self.feeder.ready.get(timeout=0.05 if len(self.kept) > KEPT // 2 else 1.0)
                self.kept.append(found)
                return found
            except queue.Empty:
                if len(self.kept) > KEPT // 2:
                    self.again += 1
                    return self.kept[np.random.randint(len(self.kept))]

    def learn(self, batch: OnDevice) -> bool:
        """One step; False when it failed."""
        if self.hole_failures > 2:
            batch.alive = None
        try:
            self.figures.append(self.training.step(batch, self.rate()))
        except Exception:  # minutes on a GPU are few: without what fails it goes on
            self.failures += 1
            self.hole_failures += batch.alive is not None
            say(f"failed: {batch.kind}, {batch.rows} x {batch.columns}\n{traceback.format_exc()}")
            if self.failures > 4 and batch.alive is None:
                self.training.fast.is_compiled = False
            for parameter in self.training.optimizer.named.values():
                parameter.grad = None
            if self.failures > MOST_FAILURES:
                raise
            return False
        self.steps += 1
        self.pictures += len(batch.pixels)
        return True

    def choose_speed(self) -> None:
        """Compiles, and keeps what was compiled if it is faster."""
        fast = self.training.fast
        batch = self.batch()
        seconds = {}
        for compiled in (False, True):
            fast.is_compiled = compiled
            try:
                started = time.monotonic()
                for n in range(7):
                    if n == 2:
                        self.wait()
                        first, started = time.monotonic() - started, time.monotonic()
                    self.training.step(batch, 0.02)
                self.wait()
                seconds[compiled] = (time.monotonic() - started) / 5
                self.log(compiled=compiled, first_sec=round(first, 2), step_sec=round(seconds[compiled], 4))
            except Exception:
                say(traceback.format_exc())
                for parameter in self.training.optimizer.named.values():
                    parameter.grad = None
        fast.is_compiled = seconds.get(True, math.inf) < seconds.get(False, math.inf)

    def wait(self) -> None:
        if self.training.device.type == "cuda":
            torch.cuda.synchronize()

    def validate(self, file: Path, quick: bool, **values: object) -> None:
        try:
            batches = pickle.loads(file.read_bytes())
            self.log(validation=self.training.validate(batches[:2] + batches[-2:] if quick else batches), **values)
        except (OSError, RuntimeError):  # not drawn yet, or too large: training is worth more
            say(traceback.format_exc())

    def train(self, validation: Path) -> None:
        noted = saved = validated = time.monotonic()
        n_noted = 0
        while time.monotonic() < self.end:
            batch = self.batch()
            if not self.learn(batch):
                continue
            n_noted += len(batch.pixels)
            now = time.monotonic()
            if now - noted > LOG_SEC:
                means = {
                    name: round(torch.stack([each[name].float() for each in self.figures]).mean().item(), 4)
                    for name in self.figures[0]
                }
                now = time.monotonic()
                self.log(**means, rate=round(self.rate(), 4), per_sec=round(n_noted / (now - noted)), again=self.again,
                         waiting=self.feeder.ready.qsize(), drawn=dict(self.feeder.drawers.counts))  # fmt: skip
                if not all(map(math.isfinite, means.values())):
                    self.log(warning="not a number")
                self.figures.clear()
                noted, n_noted = now, 0
            if now - saved > SAVE_SEC:
                self.training.save(self.folder)
                saved = now
            if now - validated > VALIDATE_SEC and self.end - now > 20:
                self.validate(validation, quick=True)
                validated = now
        self.training.save(self.folder)
        self.validate(validation, quick=False, final=True)


def main() -> None:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m training.train_gpu", description=__doc__)
    parser.add_argument("folder", type=Path, help="of weights and log, to write")
    parser.add_argument("--start", type=Path, default=SHIPPED, help="folder of the GGUFs to go on from (%(default)s)")
    parser.add_argument("--pages", type=Path, help="folder of training.renderers.browser: web*.bin, test*.bin")
    parser.add_argument("--fonts", type=Path, help="folder of training.renderers.typefaces")
    parser.add_argument("--minutes", type=float, default=7, help="from now to the last step (%(default)g)")
    parser.add_argument("--drawers", type=int, default=14, help="processes that draw (%(default)d)")
    parser.add_argument("--layers", type=int, default=9, help="of the encoder (%(default)d)")
    parser.add_argument("--rate", type=float, default=RATE, help="of the rates for small batches (%(default)g)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a batch's pictures (%(default)d)")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--tiny", action="store_true", help="a small new model and few pictures to validate with, to try this out"
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vocabulary = Vocabulary.read()
    readers = {
        name: [Reader(args.pages, path.stem) for path in sorted(args.pages.glob(f"{name}*.bin"))] if args.pages else []
        for name in ("web", "test")
    }
    stream = partial(seeds_apart, pages=readers["web"], fonts=args.fonts, tokens=args.tokens, mixture=MIXTURE)
    drawers = Drawers(args.drawers, stream, vocabulary.words)  # before the GPU is used
    counts = {kind: 8 for kind in N_VALIDATE} if args.tiny else N_VALIDATE
    validation = Path(tempfile.mkdtemp()) / "validation"
    multiprocessing.get_context("fork").Process(
        target=draw_validation,
        args=(validation, vocabulary, readers["test"], args.fonts, counts, args.tokens),
        daemon=True,
    ).start()
    say(f"{args.drawers} processes draw; {sum(map(len, readers['web']))} pages; {time.monotonic() - begin:.1f} s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores")
    if args.tiny:
        model = Student(StudentShape(len(vocabulary), 64, 64, 3, 64, 64, 1 + max(AHEAD_LAYERS)))
    else:
        model = shipped.deeper(shipped.load(args.start)[0], args.layers)
    training = Training(model, vocabulary, device, args.rate)
    feeder = Feeder(drawers, device)
    feeder.start()
    run = Run(training, feeder, args.folder, begin, begin + 60 * args.minutes)
    if not args.no_compile:
        run.choose_speed()
    run.train(validation)
    drawers.close()
    sys.stderr.flush()
    os._exit(0)  # threads that wait for nothing


if __name__ == "__main__":
    main()

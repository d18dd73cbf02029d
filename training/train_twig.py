"""`python -m training.train_twig`: a twig for the shipped demo model, as TwigVLM trains one (arXiv 2503.14075).

On the output of the model's first layers grow a few more, with a norm and a head of their own; they begin as copies of
the layers that follow there, and of the model's norm and head. They alone learn, to answer, by plain cross-entropy.
Weights are written as TwigVLM's are; `halfv twig` makes a GGUF of them. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import save_file
from torch import Tensor

from training import pictures, shipped
from training.batches import NOTHING, Batch, Drawer, batches
from training.optimizer import Optimizer
from training.student import Student
from training.teacher import GRID, Language, normalised
from training.train_gpu import SHIPPED
from training.train_teacher import ADAM_RATE, MUON_RATE
from training.vocabulary import Vocabulary

AFTER, LAYERS = 2, 3  # the first layer that the twig does not share, and how many it has of its own
PICTURES = 8  # per step
RATE, WARM_UP, DECAY, LEAST = 0.5, 30, 0.5, 0.02  # of the rates; steps; share of the time in which it falls, to what
SAVE_SEC, LOG_SEC = 120, 30
FIRST = 10_000_000  # picture of the training split, so that the twig learns from others than the model did
N_VALIDATE = 32  # pictures


def twig_of(model: Student, after: int, layers: int) -> Language:
    """The model's first layers and the twig as one language model, of which the twig alone learns."""
    twig = Language(dataclasses.replace(model.shape, n_layer=after + layers))
    state = model.language.state_dict()
    twig.load_state_dict({name: state[name] for name in twig.state_dict()})
    twig.embed.requires_grad_(False)
    twig.blocks[:after].requires_grad_(False)
    return twig


def released(twig: Language, masters: dict[str, Tensor], after: int) -> Iterator[tuple[str, Tensor]]:
    """In TwigVLM's names: its layers count from 0."""
    yield "model.norm.weight", masters["norm.weight"]
    yield "lm_head.weight", masters["head.weight"]
    for number in range(after, len(twig.blocks)):
        of = {name: masters[f"blocks.{number}.{name}.weight"] for name in ("qkv", "gate_up", "out", "down")}
        here = f"model.layers.{number - after}."
        for name, part in zip("qkv", of["qkv"].chunk(3), strict=True):
            yield f"{here}self_attn.{name}_proj.weight", part
        for name, part in zip(("gate", "up"), of["gate_up"].chunk(2), strict=True):
            yield f"{here}mlp.{name}_proj.weight", part
        yield f"{here}self_attn.o_proj.weight", of["out"]
        yield f"{here}mlp.down_proj.weight", of["down"]
        yield f"{here}input_layernorm.weight", masters[f"blocks.{number}.attn_norm.weight"]
        yield f"{here}post_attention_layernorm.weight", masters[f"blocks.{number}.ffn_norm.weight"]


class Run:
    def __init__(self, folder: Path, model: Student, vocabulary: Vocabulary, minutes: float, after: int, layers: int):
        self.folder, self.vocabulary, self.after, self.end_sec = folder, vocabulary, after, 60 * minutes
        self.twig = twig_of(model, after, layers)
        self.optimizer = Optimizer(self.twig.named_parameters())
        self.model = model.bfloat16().requires_grad_(False)
        self.twig.bfloat16()
        self.sec, self.step, self.pictures = 0.0, 0, 0
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.sec, self.step, self.pictures = saved["sec"], saved["step"], saved["pictures"]

    def save(self) -> None:
        partial = self.folder / "partial"
        progress = {"sec": self.sec, "step": self.step, "pictures": self.pictures}
        torch.save({"optimizer": self.optimizer.state_dict()} | progress, partial)
        os.replace(partial, self.checkpoint)
        masters = {name: state["master"] for name, state in self.optimizer.state.items()}
        weights = {name: weight.contiguous() for name, weight in released(self.twig, masters, self.after)}
        save_file(weights, partial, {"format": "pt"})
        os.replace(partial, self.folder / "model.safetensors")

    def log(self, **values: object) -> None:
        line = json.dumps({"sec": round(self.sec), "step": self.step, "pictures": self.pictures} | values)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            print(line, file=file)
        print(line, file=sys.stderr, flush=True)

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and targets where answers are."""
        with torch.no_grad():
            features = self.model.vision(normalised(torch.from_numpy(batch.pixels)).bfloat16())
            visual = self.model.projector(features)
        text, positions, mask = (torch.from_numpy(array) for array in (batch.text, batch.positions, batch.mask))
        around = torch.tensor(self.vocabulary.around)
        states, _ = self.twig(around, visual, text, positions, mask, (GRID, GRID))
        targets = torch.from_numpy(batch.targets)
        return self.twig.head(states[targets != NOTHING]).float(), targets[targets != NOTHING]

    def learn(self, batch: Batch) -> tuple[float, float]:
        logits, targets = self.read(batch)
        loss = functional.cross_entropy(logits, targets)
        loss.backward()
        left = max(0.0, self.end_sec - self.sec) / (DECAY * self.end_sec)
        rate = RATE * min(1.0, (self.step + 1) / WARM_UP) * max(LEAST, min(1.0, left))
        self.optimizer.step(MUON_RATE * rate, ADAM_RATE * rate, 1.0)
        return loss.item(), (logits.argmax(-1) == targets).float().mean().item()

    @torch.no_grad()
    def validate(self) -> float:
        """The share of answers' tokens that are right, given those before."""
        right = n_tokens = 0
        drawn = batches("validation", PICTURES, 0, self.vocabulary, most=10, side=pictures.SIZE)
        for _ in range(N_VALIDATE // PICTURES):
            logits, targets = self.read(next(drawn))
            right += int((logits.argmax(-1) == targets).sum())
            n_tokens += len(targets)
        return right / n_tokens

    def train(self) -> None:
        if self.sec < self.end_sec:
            self.log(validation=round(self.validate(), 4))
        drawer = Drawer(PICTURES, FIRST + self.pictures, self.vocabulary.words, None, 0, pictures.SIZE)
        saved = noted = time.monotonic()
        last = time.process_time()  # others may use the machine
        seen: list[tuple[float, float]] = []
        try:
            while self.sec < self.end_sec:
                seen.append(self.learn(next(drawer)))
                now, spent = time.monotonic(), time.process_time()
                self.sec, last = self.sec + spent - last, spent
                self.step, self.pictures = self.step + 1, self.pictures + PICTURES
                if now - noted > LOG_SEC:
                    loss, right = (sum(each) / len(seen) for each in zip(*seen, strict=True))
                    self.log(loss=round(loss, 4), right=round(right, 4))
                    seen, noted = [], now
                if now - saved > SAVE_SEC:
                    self.save()
                    saved = now
            self.log(validation=round(self.validate(), 4))
            self.save()
        finally:
            drawer.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.train_twig", description=__doc__)
    parser.add_argument("folder", type=Path, help="of model.safetensors, checkpoint.pt and log.jsonl")
    parser.add_argument("--start", type=Path, default=SHIPPED, help="folder of the model's GGUFs (%(default)s)")
    parser.add_argument("--after", type=int, default=AFTER, help="layers that are shared (%(default)d)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the twig's own (%(default)d)")
    parser.add_argument("--minutes", type=float, default=40, help="of a core, in all (%(default)g)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)d)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    model, vocabulary = shipped.load(args.start)
    if min(args.after, args.layers) < 1 or args.after + args.layers > model.shape.n_layer:
        parser.error(f"--after {args.after} --layers {args.layers}: the model has {model.shape.n_layer} layers")
    Run(args.folder, model, vocabulary, args.minutes, args.after, args.layers).train()


if __name__ == "__main__":
    main()

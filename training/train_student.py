"""`python -m training.train_student`: the demo model, for pictures of any size, taught by the model of
`training.train_teacher`.

Its encoder first learns to see as that model's does, token by token; then both of its parts learn to answer, from
whole pictures and from smaller ones.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from training import pictures
from training.batches import HEADS, Batch
from training.export import load
from training.student import TOKEN, Student, StudentShape
from training.teacher import GRID, IMAGE_SIZE, Teacher, normalised
from training.train_teacher import PATCH_WEIGHT, RARE, Run, char_accuracy
from training.vocabulary import Vocabulary

WHOLE = 0.5  # batches of pictures at their own size, once answers are learnt
LEAST_SIDE = 8  # tokens of the smallest
OBLONG = 0.5  # of the smaller ones are not square
LIKENESS_WEIGHT = 20.0
PLACES = ("row", "column")  # learnt from padding by the other encoder; here M-RoPE tells them


class StudentRun(Run):
    side, grid = pictures.SIZE, (GRID, GRID)
    rate_later, encoder_later = 0.5, 1.0  # the language model comes taught, the encoder still learns most

    def __init__(self, folder: Path, model: Student, teacher: Teacher, vocabulary: Vocabulary, minutes: list[float]):
        model.start_from(teacher)
        self.teacher = teacher.bfloat16().requires_grad_(False)
        super().__init__(folder, model, vocabulary, *minutes)
        self.rng = random.Random(self.progress.pictures)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        pixels = torch.from_numpy(batch.pixels)
        if self.answers and not batch.patches_only and self.rng.random() > WHOLE:
            smaller = self.smaller(pixels)
            grid = smaller.shape[1] // TOKEN, smaller.shape[2] // TOKEN
            return self.answered(batch, self.model.vision(smaller), grid)
        features = self.model.vision(normalised(pixels).bfloat16())
        labels = torch.from_numpy(batch.labels)
        patch_loss, found = self.heads(features, labels)
        figures = {"patch_loss": patch_loss.item()} | char_accuracy(found, labels)
        if batch.patches_only or not self.answers:
            alike = self.likeness(pixels, features, labels)
            return patch_loss + LIKENESS_WEIGHT * alike, figures | {"alike": alike.item()}
        loss, more = self.answered(batch, features)
        return loss + PATCH_WEIGHT * patch_loss, figures | more

    def smaller(self, pixels: Tensor) -> Tensor:
        """All pictures at the same smaller size, shrunk in one of two ways, as nobody knows how a user's are."""
        side = self.rng.randrange(LEAST_SIDE, GRID)
        other = self.rng.randrange(side, min(GRID, 2 * side) + 1) if self.rng.random() < OBLONG else side
        height, width = self.rng.sample([side * TOKEN, other * TOKEN], 2)
        planes = normalised(pixels).permute(0, 3, 1, 2)
        planes = functional.interpolate(planes, (height, width), mode="bicubic", antialias=self.rng.random() < 0.5)
        return planes.permute(0, 2, 3, 1).bfloat16()

    def likeness(self, pixels: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """How far the tokens are from the other model's, which sees the picture at its own size."""
        planes = pixels.permute(0, 3, 1, 2).float()
        planes = functional.interpolate(planes, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
        with torch.no_grad():
            seen = normalised(planes.permute(0, 2, 3, 1)).bfloat16()
            wanted = self.teacher.projector(self.teacher.vision(seen))
        what = [i for i, name in enumerate(HEADS) if name not in PLACES]
        weight = 1 + (RARE - 1) * (labels[..., what] > 0).any(-1)
        apart = (self.model.projector(features) - wanted).float().square().mean(-1)
        return (apart * weight).sum() / weight.sum()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.train_student", description="Train it on this CPU.")
    parser.add_argument("folder", type=Path, help="of checkpoint.pt and log.jsonl; a run in it goes on")
    parser.add_argument("taught", type=Path, help="checkpoint of training.train_teacher")
    parser.add_argument("--minutes", type=float, default=60, help="in all (%(default)g)")
    parser.add_argument("--patch-minutes", type=float, default=24, help="of them for the encoder alone (%(default)g)")
    parser.add_argument("--batch", type=int, default=8, help="pictures per step (%(default)d)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)d)")
    parser.add_argument("--draw-core", type=int, metavar="N", help="core of the process that draws")
    parser.add_argument("--tiny", action="store_true", help="a small encoder, saved every second, to try this out")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    teacher, vocabulary = load(args.taught)
    language = {name: getattr(teacher.shape, name) for name in ("n_embd", "n_ff", "n_layer")}
    vision = {"n_vision": 64, "n_vision_ff": 64, "n_vision_layer": 3} if args.tiny else {}
    model = Student(StudentShape(len(vocabulary), **language, **vision))
    minutes = [args.minutes, args.patch_minutes, args.patch_minutes]
    run = StudentRun(args.folder, model, teacher, vocabulary, minutes)
    if args.tiny:
        run.checkpoint_sec, run.n_validate = 1, 16
    run.train(args.batch, args.draw_core)


if __name__ == "__main__":
    main()

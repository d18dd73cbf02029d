"""The pictures and questions to calibrate with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfv_edge import files
from halfv_edge.engine import images
from halfv_edge.engine.images import Picture
from halfv_edge.errors import HalfVError, quote
from halfv_edge.measure.calibrate import pictures
from halfv_edge.measure.progress import Say, ignore

LEAST = 4  # samples; fewer say nothing
MAX_LIST_BYTES = 64 << 20
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2", ".tga", ".ico"}
QUESTIONS = (
    "Describe this picture in one sentence.",
    "What text can be read in the picture?",
    "What is the main object, and what color is it?",
    "How many things are there, and where are they?",
)
GENERATED = "generated pictures"
MOST_GENERATED = 40  # more of the kind say nothing new


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    question: str
    picture: Picture | None = field(default=None, compare=False)  # of generated ones; others are read when needed
    key: str = ""  # the same for the same pixels and question

    def load(self) -> Picture:
        return self.picture or images.load(self.name)

    def keyed(self) -> Sample:
        """With its key; what cannot be read shows here."""
        text = f"{self.load().digest()} {self.question}"
        return dataclasses.replace(self, key=hashlib.blake2b(text.encode(), digest_size=12).hexdigest())


@dataclass(frozen=True, slots=True)
class Samples:
    """What a model is calibrated on, and what to call it."""

    samples: tuple[Sample, ...]
    source: str

    def __len__(self) -> int:
        return len(self.samples)


def find_samples(images: Path | None = None, *, n_samples: int = 100, seed: int = 0, say: Say = ignore) -> Samples:
    """Find pictures with questions to calibrate with.

    Args:
        images: A folder of pictures, or a JSONL file of {"image": ..., "question": ...}; None draws some.
        n_samples: At most so many.
        seed: Of which ones.
        say: Hears of each that cannot be read.

    Returns:
        The samples, and what to call them.

    Raises:
        HalfVError: There are too few that can be read.
    """
    if n_samples < LEAST:
        raise HalfVError("is too few", parameter="n_samples", value=n_samples, rule=f"at least {LEAST}")
    if images is None:
        made = pictures.generate(min(n_samples, MOST_GENERATED), seed)
        drawn = (Sample(name, question, Picture(name, image)).keyed() for name, image, question in made)
        return Samples(tuple(drawn), GENERATED)
    if not images.exists():
        raise HalfVError(f"{images} does not exist: give a folder of pictures, or a JSONL file.")
    listed = _folder(images) if images.is_dir() else list(_lines(images))
    random.Random(seed).shuffle(listed)
    usable: list[Sample] = []
    n_bad = 0
    for sample in listed:
        if len(usable) == n_samples:
            break
        try:
            usable.append(sample.keyed())
        except HalfVError as error:
            n_bad += 1
            say(f"skipped: {error}")
    if len(usable) < LEAST:
        unread = f", and {n_bad} more cannot be read" if n_bad else ""
        raise too_few(f"{images} has {len(usable)} usable pictures{unread}")
    return Samples(tuple(usable), images.name)


def too_few(what: str) -> HalfVError:
    return HalfVError(f"{what}: calibration needs at least {LEAST}, and about 100 for a result to rely on.")


def _folder(folder: Path) -> list[Sample]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [Sample(str(path), QUESTIONS[at % len(QUESTIONS)]) for at, path in enumerate(found)]


def _lines(path: Path) -> Iterator[Sample]:
    if path.suffix.lower() in SUFFIXES:
        raise HalfVError(f"{path} is one picture: give the folder it is in, or a JSONL file of pictures and questions.")
    raw = files.read_small(path, MAX_LIST_BYTES, f"is longer than {MAX_LIST_BYTES >> 20} MB: give fewer samples")
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _sample(json.loads(line.decode("utf-8-sig")), path, number)
        except (ValueError, RecursionError) as error:
            raise HalfVError(
                f'{path}, line {number} is not JSON: it must be like {{"image": "a.png", "question": "..."}}.'
            ) from error


def _sample(value: Any, path: Path, number: int) -> Sample:
    image, question = (value.get(key) if isinstance(value, dict) else None for key in ("image", "question"))
    if not isinstance(image, str) or not (question is None or isinstance(question, str)):
        raise HalfVError(
            f'{path}, line {number} is {quote(value)}: it must be like {{"image": "a.png", "question": "..."}}.'
        )
    return Sample(str(path.parent / image), question or QUESTIONS[(number - 1) % len(QUESTIONS)])

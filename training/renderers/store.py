"""Pictures with questions and boxes in two files: `NAME.bin`, encoded pictures, and `NAME.jsonl.gz`, a line each."""

from __future__ import annotations

import gzip
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from training import pictures

TOKEN = 20  # pixels of a token, along a side


def deltas(values: list[int]) -> list[int]:
    """Differences: they pack better."""
    return [b - a for a, b in itertools.pairwise([0, *values])]


class Writer:
    def __init__(self, folder: Path, name: str, quality: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.quality, self.bytes = quality, 0
        self._pictures = (folder / f"{name}.bin").open("wb")
        self._lines = gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8")  # noqa: SIM115  until close()

    def add(self, sample: pictures.Sample) -> None:
        packed = io.BytesIO()
        sample.image.save(packed, "WEBP", quality=self.quality, method=4)
        boxes = list(zip(*(box for _, *box in sample.chars), strict=True)) or [[], [], [], []]
        x0, y0, x1, y1 = map(list, boxes)
        record = {
            "at": self.bytes,
            "bytes": packed.tell(),
            "questions": [asdict(question) for question in sample.questions],
            "text": "".join(char for char, *_ in sample.chars),
            "left": deltas(x0),
            "top": deltas(y0),
            "wide": deltas([b - a for a, b in zip(x0, x1, strict=True)]),
            "high": deltas([b - a for a, b in zip(y0, y1, strict=True)]),
            "shapes": sample.shapes,
            "kind": sample.kind,
            "layout": sample.layout,
        }
        self._pictures.write(packed.getbuffer())
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.bytes += packed.tell()

    def close(self) -> None:
        self._pictures.close()
        self._lines.close()


class Reader:
    """Everything but the pictures is held; those are decoded when they are asked for."""

    def __init__(self, folder: Path, name: str):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            self._lines = file.read().splitlines()
        self._pictures = (folder / f"{name}.bin").read_bytes()

    def __len__(self) -> int:
        return len(self._lines)

    def _packed(self, record: dict) -> Image.Image:
        return Image.open(io.BytesIO(self._pictures[record["at"] : record["at"] + record["bytes"]]))

    def size(self, number: int) -> tuple[int, int]:
        """Columns and rows of tokens."""
        width, height = self._packed(json.loads(self._lines[number])).size
        return width // TOKEN, height // TOKEN

    def __getitem__(self, number: int) -> pictures.Sample:
        record = json.loads(self._lines[number])
        image = self._packed(record).convert("RGB")
        left, top, wide, high = (list(itertools.accumulate(record[name])) for name in ("left", "top", "wide", "high"))
        chars = [
            (char, x, y, x + w, y + h) for char, x, y, w, h in zip(record["text"], left, top, wide, high, strict=True)
        ]
        questions = [pictures.Question(**question) for question in record["questions"]]
        shapes = [tuple(shape) for shape in record["shapes"]]
        return pictures.Sample(image, questions, chars, shapes, record["kind"], record["layout"])

    def __iter__(self) -> Iterator[pictures.Sample]:
        return (self[number] for number in range(len(self)))

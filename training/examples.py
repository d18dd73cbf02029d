"""`python -m training.examples`: draws the pictures of examples/ with the fonts of the test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training import pictures

FOLDER = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True, slots=True)
class Example:
    name: str
    kind: str  # of pictures.KINDS
    seed: int
    question: str
    answer: str

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.png"


# seeds whose pictures look well and are answered right; docs/demo-model.md says how often that is so
EXAMPLES = (
    Example("receipt", "document", 54, "What is the total?", "79.00"),
    Example("chart", "chart", 114, "What is the highest value?", "92"),
    Example("interface", "interface", 6, "What does the right button say?", "Back"),
    Example("shapes", "shapes", 12, "What color is the cross?", "green"),
)


def main() -> None:
    for example in EXAMPLES:
        pictures.make(example.seed, "test", example.kind).image.save(example.path, optimize=True)


if __name__ == "__main__":
    main()

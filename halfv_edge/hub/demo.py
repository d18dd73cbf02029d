"""The small model that comes with the package, for when none is named."""

from __future__ import annotations

from pathlib import Path

DEMO_FOLDER = Path(__file__).with_name("demo_model")
MODEL, MMPROJ = "model.gguf", "mmproj.gguf"
DEMO_NOTE = (
    "This is the built-in demo model: it knows drawings, text, charts, documents and interfaces, not the world. "
    "Name another with -m or --hf."
)


def demo_model() -> tuple[Path, Path] | None:
    """Language model and encoder; None where they were left out."""
    model, mmproj = DEMO_FOLDER / MODEL, DEMO_FOLDER / MMPROJ
    return (model, mmproj) if model.is_file() and mmproj.is_file() else None

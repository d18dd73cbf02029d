"""`python -m training.join FOLDER CHECKPOINT`: what `training.train_gpu` wrote, as `training.export` takes it."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch


def joined(folder: Path) -> dict:
    parts = sorted(folder.glob("weights-*.part"), key=lambda path: int(path.stem.split("-")[1]))
    if not parts:
        raise FileNotFoundError(f"'{folder}' has no parts of weights")
    return torch.load(io.BytesIO(b"".join(part.read_bytes() for part in parts)), weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.join", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path, help="to write")
    args = parser.parse_args()
    saved = joined(args.folder)
    state = {name: {"master": weight.float()} for name, weight in saved["weights"].items()}
    torch.save({"shape": saved["shape"], "words": saved["words"], "optimizer": {"state": state}}, args.checkpoint)


if __name__ == "__main__":
    main()

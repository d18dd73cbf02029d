"""Writes drawings of kept tokens, one PNG per picture."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from halfv_edge import files
from halfv_edge.errors import HalfVError

if TYPE_CHECKING:
    from halfv_edge.engine.images import Picture
    from halfv_edge.engine.tokens import TokenMap


def check(out: Path, pictures: Sequence[Picture]) -> None:
    """Whether a drawing may go there: a PNG, and never in place of a picture that was given."""
    if out.suffix.lower() != ".png":
        raise HalfVError(f"{out} is not a PNG: name the drawing {out.name}.png or the like.")
    if out.is_dir():
        raise HalfVError(f"{out} is a folder: name the file in it.")
    given = {os.path.realpath(picture.name) for picture in pictures}
    for path in targets(out, len(pictures)):
        if os.path.realpath(path) in given:
            raise HalfVError(f"{path} is one of the pictures: choose another name for the drawing.")


def targets(out: Path, count: int) -> list[Path]:
    """out.png, or out-1.png, out-2.png and so on when there are several."""
    return (
        [out] if count == 1 else [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]
    )


def write(maps: Sequence[TokenMap], pictures: Sequence[Picture], out: Path) -> list[Path]:
    """Draw and write all; what was there is replaced."""
    from halfv_edge.draw.token_map import draw_token_map  # here, so that commands without pictures start fast

    check(out, pictures)
    paths = targets(out, len(maps))
    for token_map, path in zip(maps, paths, strict=True):
        drawn = io.BytesIO()
        draw_token_map(token_map).save(drawn, "PNG")
        files.write(path, drawn.getvalue())
    return paths

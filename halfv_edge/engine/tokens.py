"""Which visual tokens of a picture were kept, and where in it they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from halfv_edge.errors import HalfVError

Box = tuple[float, float, float, float]  # left, top, right, bottom; the picture is from 0 to 1, padding lies outside

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Tile:
    """One grid of visual tokens: of the whole picture, or of a part of it."""

    columns: int  # 0 when the encoder does not lay its tokens out as a grid
    rows: int
    n_patches: int  # tokens that the grid could be
    entered: list[int]  # places in the grid that went through the encoder, row by row; the others repeat a neighbour
    given: list[int]  # of them that the language model got
    kept: list[int]  # of them in stage II
    deep: list[int]  # of them updated in stage III
    box: Box
    overview: bool = False  # the whole picture beside its tiles

    @property
    def n_tokens(self) -> int:
        return len(self.given)


@dataclass(frozen=True, slots=True)
class TokenMap:
    """The visual tokens of one picture. Encoders that tile give several grids, and an overview.

    Of a video each frame has its own grid, or each two, and the image shows them side by side.
    """

    image: Image.Image
    tiles: list[Tile]
    token_side: int = 0  # pixels of a token that the encoder took; 0: of an encoder of one size

    @property
    def n_patches(self) -> int:
        """Tokens that the picture could be."""
        return sum(tile.n_patches for tile in self.tiles)

    @property
    def n_rows(self) -> int:
        """Tokens that went through the encoder."""
        return sum(len(tile.entered) for tile in self.tiles)

    @property
    def n_visual(self) -> int:
        """Tokens that the language model got."""
        return sum(tile.n_tokens for tile in self.tiles)

    @property
    def n_kept(self) -> int:
        """Tokens that stage II has."""
        return sum(len(tile.kept) for tile in self.tiles)

    @property
    def n_deep(self) -> int:
        """Tokens that stage III updates."""
        return sum(len(tile.deep) for tile in self.tiles)

    def original(self, x: float, y: float) -> tuple[float, float]:
        """Find a place that a model names in pixels, as Qwen2-VL and Qwen2.5-VL do.

        Theirs are pixels of the picture that the encoder took, which may have been made smaller.

        Args:
            x: From the left, in that picture.
            y: From above.

        Returns:
            The same place in the picture that was given, in its pixels.

        Raises:
            HalfVError: The encoder has one size, or cuts pictures into tiles, or it is a video.
        """
        if not self.token_side:
            raise HalfVError(
                "This encoder takes pictures of one size, or this is a video: its model names no places in pixels."
            )
        tile = self.tiles[0]
        left, top, right, bottom = tile.box
        return (
            self.image.width * (left + x / (tile.columns * self.token_side) * (right - left)),
            self.image.height * (top + y / (tile.rows * self.token_side) * (bottom - top)),
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """How an encoder tiles."""

    grids: tuple[tuple[int, int], ...] = ()  # columns, rows that it may choose; (): any
    overview_first: bool = False

    def boxes(self, n_chunks: int, size: tuple[int, int], columns: int, rows: int) -> list[tuple[Box, bool]]:
        """Of each chunk of a picture: the part that its columns x rows tokens show, and if it is the overview."""
        if n_chunks == 1:
            return [(_letterbox(size, columns, rows), False)]
        across, down = self.grid(n_chunks - 1, size)
        # llama.cpp pads to one of the given resolutions, and stretches to a free number of tiles
        left, top, right, bottom = _letterbox(size, across * columns, down * rows) if self.grids else WHOLE
        wide, high = (right - left) / across, (bottom - top) / down
        tiles = [
            ((left + x * wide, top + y * high, left + (x + 1) * wide, top + (y + 1) * high), False)
            for y in range(down)
            for x in range(across)
        ]
        return [(WHOLE, True), *tiles] if self.overview_first else [*tiles, (WHOLE, True)]

    def grid(self, n_tiles: int, size: tuple[int, int]) -> tuple[int, int]:
        """Columns and rows of so many tiles: of those possible the ones most like the picture's shape."""
        possible = [(n, n_tiles // n) for n in range(1, n_tiles + 1) if n_tiles % n == 0]
        allowed = [grid for grid in possible if grid in self.grids] or possible
        shape = size[0] / size[1]
        return min(allowed, key=lambda grid: abs(math.log(grid[0] / grid[1] / shape)))


def _letterbox(size: tuple[int, int], columns: int, rows: int) -> Box:
    """Where a grid of square tokens lies when the picture is fitted into its middle, as llama.cpp does."""
    width, height = size
    if not columns:
        return WHOLE
    scale = min(columns / width, rows / height)
    beside = (columns / (width * scale) - 1) / 2
    above = (rows / (height * scale) - 1) / 2
    return (-beside, -above, 1 + beside, 1 + above)

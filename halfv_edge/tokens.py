"""The picture with what the model looked at: kept tokens bright, dropped ones dimmed, deep ones outlined."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the picture

DIM = 0.25
OUTLINE = (255, 196, 0)
PAPER, INK = (24, 24, 24), (235, 235, 235)
MIN_SIDE, MAX_SIDE = 448, 1600  # of the drawn picture's longer side
GAP = 8


@dataclass(frozen=True, slots=True)
class Tile:
    """One grid of visual tokens: of the whole picture, or of a part of it."""

    columns: int
    rows: int
    kept: list[int]  # in stage II, row by row
    deep: list[int]  # of them updated in stage III
    box: Box
    overview: bool = False


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Which tokens of a picture were kept. Models that tile have several tiles and an overview."""

    image: Image.Image
    tiles: list[Tile]

    @property
    def n_visual(self) -> int:
        return sum(tile.columns * tile.rows for tile in self.tiles)

    @property
    def n_kept(self) -> int:
        return sum(len(tile.kept) for tile in self.tiles)

    @property
    def n_deep(self) -> int:
        return sum(len(tile.deep) for tile in self.tiles)


def tile_grid(n_chunks: int, size: tuple[int, int]) -> list[Box]:
    return [(0.0, 0.0, 1.0, 1.0)] * n_chunks

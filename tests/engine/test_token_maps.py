"""Which tokens were kept, and the drawing of it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from PIL import Image

from halfv_edge.draw.token_map import draw_token_map
from halfv_edge.engine import encoder
from halfv_edge.engine.images import load as load_image
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import read_metadata
from tests.support.vlm import KINDS, QUESTION, Vlms, picture


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(420, 300), (300, 420), (200, 200)])
def test_a_drawn_map_shows_what_was_kept(kind: str, size: tuple[int, int], vlms: Vlms) -> None:
    model = vlms.load(kind)
    white = Image.new("RGB", size, "white")
    with model.chat() as chat:
        chat.answer(QUESTION, [white], max_tokens=1)
        (token_map,) = chat.token_maps
    (tile,) = token_map.tiles
    if kind == "qwen2vl":
        assert (tile.columns, tile.rows) == (round(size[0] / 28), round(size[1] / 28))
    else:
        assert (tile.columns, tile.rows) == (10, 10)
    drawn = draw_token_map(token_map, legend=False)
    left, top, right, bottom = tile.box
    for token in range(tile.n_tokens):
        row, column = divmod(token, tile.columns)
        x = left + (column + 0.5) / tile.columns * (right - left)
        y = top + (row + 0.5) / tile.rows * (bottom - top)
        if not (0.01 < x < 0.99 and 0.01 < y < 0.99):
            continue  # padding
        scale = max(size) and 640 / max(size)
        at = (16 + (x - min(left, 0)) * size[0] * scale, 16 + (y - min(top, 0)) * size[1] * scale)
        light = drawn.getpixel((round(at[0]), round(at[1])))[0]
        assert light == (255 if token in tile.kept else 56), (token, at)
    assert draw_token_map(token_map).height > drawn.height


@pytest.mark.parametrize(
    ("size", "grid"), [((420, 300), (2, 2)), ((600, 300), (2, 1)), ((300, 600), (1, 2)), ((100, 90), None)]
)
def test_a_tiled_picture_has_an_overview(size: tuple[int, int], grid: tuple | None, vlms: Vlms) -> None:
    model = vlms.load("llava-next", n_ctx=1024)
    with model.chat() as chat:
        chat.answer(QUESTION, [picture(0, *size)], max_tokens=1)
        (token_map,) = chat.token_maps
        assert chat.stats.n_kept == token_map.n_kept
    n_tiles = grid[0] * grid[1] if grid else 1
    assert [tile.overview for tile in token_map.tiles] == [False] * n_tiles + [True] * bool(grid)
    assert all(len(tile.kept) == 50 for tile in token_map.tiles)  # each has its own quota
    if grid:
        boxes = [tile.box for tile in token_map.tiles if not tile.overview]
        assert len({(round(b[0], 6)) for b in boxes}) == grid[0] and len({round(b[1], 6) for b in boxes}) == grid[1]
    assert draw_token_map(token_map).width > size[0] * (1 + bool(grid))


@pytest.mark.parametrize(("projector", "first"), [("resampler", True), ("mlp", False)])
def test_where_the_overview_comes(projector: str, first: bool, tmp_path: Path) -> None:
    """MiniCPM-V's comes before the tiles, and every other one's behind them."""
    writer = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    writer.add_string("clip.projector_type", projector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    layout = encoder._layout(read_metadata(tmp_path / "mmproj.gguf"))
    overviews = [is_overview for _, is_overview in layout.boxes(5, (400, 400), 8, 8)]
    assert overviews == ([True] + [False] * 4 if first else [False] * 4 + [True])


def test_tiles_lie_where_the_encoder_cut_them(vlms: Vlms) -> None:
    """Each tile's embeddings are those of that part of the picture alone."""
    plain, tiled = vlms.load("llava"), vlms.load("llava-next", n_ctx=1024)
    whole = picture(9, 280, 280)
    encoder = tiled.encoder

    def embeddings(model: Model, image: Image.Image) -> list[np.ndarray]:
        encoded = model.encoder.tokens(load_image(image))
        model.encoder.encode(encoded)
        return [chunk.embd for chunk in encoded.chunks]

    encoded = encoder.tokens(load_image(whole))
    encoder.encode(encoded)
    tiles = encoder.token_map(encoded, [(None, None)] * 5).tiles
    for tile, found in zip(tiles, embeddings(tiled, whole), strict=True):
        part = whole.crop(tuple(round(edge * 280) for edge in tile.box))
        np.testing.assert_allclose(found, embeddings(plain, part)[0], atol=1e-4)


def test_a_grid_lies_where_the_encoder_padded(vlms: Vlms) -> None:
    """A wide picture gives what it gives in the middle of a square of llama.cpp's padding colour."""
    encoder = vlms.load("llava").encoder
    wide = picture(9, 140, 70)
    square = Image.new("RGB", (140, 140), (122, 116, 104))
    square.paste(wide, (0, 35))
    found = []
    for image in (wide, square):
        encoded = encoder.tokens(load_image(image))
        encoder.encode(encoded)
        found.append(encoded.chunks[0].embd)
        (tile,) = encoder.token_map(encoded, [(None, None)]).tiles
        assert tile.box == ((0, -0.5, 1, 1.5) if image is wide else (0, 0, 1, 1))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_places_of_a_smaller_picture_are_places_of_the_given_one(vlms: Vlms) -> None:
    """Soft blobs become smaller, and their middle and corners stay where they are."""
    blobs = Image.fromarray(np.random.default_rng(3).integers(0, 255, (3, 4, 3), np.uint8)).resize((560, 420))
    columns = []
    for loss in (None, 0.3):
        with vlms.load("qwen2vl", image_loss=loss) as model, model.chat() as chat:
            chat.answer(QUESTION, blobs, max_tokens=1)
            (token_map,) = chat.token_maps
        (tile,) = token_map.tiles
        columns.append(tile.columns)
        wide, high = tile.columns * 28, tile.rows * 28
        assert token_map.original(wide / 2, high / 2) == pytest.approx((280, 210))
        assert token_map.original(0, 0) == pytest.approx((0, 0), abs=14)
        assert token_map.original(wide, high) == pytest.approx((560, 420), abs=14)
        assert token_map.original(wide / 4, high)[0] == pytest.approx(140, abs=14)
    assert columns[1] < columns[0]


def test_encoders_of_one_size_name_no_places(vlms: Vlms) -> None:
    with vlms.load("llava").chat() as chat:
        chat.answer(QUESTION, picture(9, 140, 70), max_tokens=1)
        with pytest.raises(HalfVError, match="names no places"):
            chat.token_maps[0].original(1, 1)

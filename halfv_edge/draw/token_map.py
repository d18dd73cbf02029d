"""A drawing of a picture that shows which of its visual tokens were kept."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from halfv_edge.engine.tokens import Tile, TokenMap

PAPER, PADDING, INK, DEEP = (24, 24, 27), (70, 68, 64), (235, 235, 235), (255, 176, 0)
REPEATED = (20, 36, 64)
DIM = 0.22  # brightness of dropped tokens
MIN_SIDE, MAX_SIDE = 640, 1600  # of the drawn picture's longer side
GAP = 16


def draw_token_map(token_map: TokenMap, legend: bool = True) -> Image.Image:
    """Draw a picture with its kept tokens bright, dropped ones dimmed, and those that stage III updates outlined.

    Patches that stayed out of the encoder are blue. A tiled picture is drawn twice: its tiles put together, and beside
    them the overview.

    Args:
        token_map: One of `chat.token_maps`.
        legend: Numbers below the picture.

    Returns:
        The drawing, to be saved or shown.

    Example:
        draw_token_map(asked.token_maps[0]).save("map.png")
    """
    drawn = [tile for tile in token_map.tiles if tile.columns]
    # where all that is kept is deep too, outlines would say nothing
    outlined = token_map.n_deep < token_map.n_kept
    panels = [
        _panel(token_map.image, tiles, outlined)
        for tiles in ([t for t in drawn if not t.overview], [t for t in drawn if t.overview])
        if tiles
    ] or [_panel(token_map.image, [], False)]
    notes = _legend(token_map, outlined, bool(drawn)) if legend else []
    return _page(panels, notes)


def _panel(image: Image.Image, tiles: Sequence[Tile], outlined: bool) -> Image.Image:
    longest = max(image.size)
    scale = min(max(longest, MIN_SIDE), MAX_SIDE) / longest
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = (min([0.0, *(tile.box[side] for tile in tiles)]) for side in (0, 1))
    right, bottom = (max([1.0, *(tile.box[side] for tile in tiles)]) for side in (2, 3))
    bright = Image.new("RGB", (round((right - left) * width), round((bottom - top) * height)), PADDING)
    bright.paste(image.resize((width, height)), (round(-left * width), round(-top * height)))
    if not tiles:
        return bright
    mask = Image.new("L", bright.size, 0)
    fill = ImageDraw.Draw(mask)
    boxes = [
        (tile, [(x - left) * width if at % 2 == 0 else (x - top) * height for at, x in enumerate(tile.box)])
        for tile in tiles
    ]
    cells = [(token, tile, box) for tile, box in boxes for token in tile.kept]
    repeated = [
        (place, tile, box)
        for tile, box in boxes
        for place in sorted(set(range(tile.n_patches)).difference(tile.entered))
    ]
    for token, tile, box in cells:
        fill.rectangle(_cell(token, tile, box), 255)
    dim = ImageEnhance.Brightness(ImageEnhance.Color(bright).enhance(0.4)).enhance(DIM)
    panel = Image.composite(bright, dim, mask)
    draw = ImageDraw.Draw(panel)
    for token, tile, box in repeated:
        draw.rectangle(_cell(token, tile, box), REPEATED)
    for token, tile, box in cells if outlined else ():
        if token in tile.deep:
            draw.rectangle(_cell(token, tile, box), outline=DEEP, width=2)
    return panel


def _cell(token: int, tile: Tile, box: Sequence[float]) -> tuple[int, int, int, int]:
    """Pixels of a token, the last ones included."""
    row, column = divmod(token, tile.columns)
    wide, high = (box[2] - box[0]) / tile.columns, (box[3] - box[1]) / tile.rows
    x, y = box[0] + column * wide, box[1] + row * high
    left, top = round(x), round(y)
    return left, top, max(left, round(x + wide) - 1), max(top, round(y + high) - 1)


def _legend(token_map: TokenMap, outlined: bool, has_grid: bool) -> list[tuple[str, str]]:
    """A swatch's kind and its words."""
    total = token_map.n_patches
    if not has_grid:
        return [("none", f"{token_map.n_kept} of {total} tokens kept; this encoder does not lay them out as a grid")]
    dropped, repeated = token_map.n_rows - token_map.n_kept, total - token_map.n_rows
    notes = [("kept", f"kept {token_map.n_kept} of {total} ({token_map.n_kept / total:.0%})")]
    notes += [("dropped", f"dropped {dropped} ({dropped / total:.0%})")]
    if repeated:
        notes.append(("repeated", f"like a neighbour, not encoded {repeated} ({repeated / total:.0%})"))
    if outlined:
        notes.append(("deep", f"deep {token_map.n_deep} ({token_map.n_deep / total:.0%})"))
    if any(tile.overview for tile in token_map.tiles):
        n_tiles = len(token_map.tiles) - 1
        notes.append(("none", f"left: {n_tiles} tiles, right: overview"))
    return notes


def _page(panels: Sequence[Image.Image], notes: Sequence[tuple[str, str]]) -> Image.Image:
    """Panels side by side, the legend below, wrapped to their width."""
    font = ImageFont.load_default(size=18)
    height = max(panel.height for panel in panels)
    scaled = [panel.resize((max(1, round(panel.width * height / panel.height)), height)) for panel in panels]
    width = sum(panel.width for panel in scaled) + GAP * (len(scaled) - 1)
    swatch = 18
    places, x, y = [], 0, 0
    for kind, words in notes:
        wide = round(font.getlength(words)) + (0 if kind == "none" else swatch + GAP // 2)
        if x and x + wide > width:
            x, y = 0, y + swatch + GAP // 2
        places.append((kind, words, x, y))
        x += wide + 2 * GAP
        width = max(width, wide)
    below = y + swatch + GAP if notes else 0
    page = Image.new("RGB", (width + 2 * GAP, height + below + 2 * GAP), PAPER)
    x = GAP
    for panel in scaled:
        page.paste(panel, (x, GAP))
        x += panel.width + GAP
    draw = ImageDraw.Draw(page)
    for kind, words, x, y in places:
        x, y = x + GAP, y + height + 2 * GAP
        if kind != "none":
            fill = {"dropped": (50, 50, 50), "repeated": REPEATED}.get(kind, (200, 200, 200))
            outline = DEEP if kind == "deep" else None
            draw.rectangle((x, y, x + swatch, y + swatch), fill, outline, 3)
            x += swatch + GAP // 2
        draw.text((x, y), words, INK, font)
    return page

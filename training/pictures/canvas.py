"""A picture being drawn, which remembers every character and shape on it."""

from __future__ import annotations

import math
import random
from functools import cache, lru_cache

from PIL import Image, ImageDraw

from training.pictures import colours, fonts
from training.pictures.colours import RGB, SIZE

Box = tuple[int, int, int, int]

# What has a name in questions; the others are parts of charts and interfaces.
NAMED_SHAPES = ("circle", "square", "triangle", "star", "diamond", "heart", "cross", "ring")
SHAPE_KINDS = (*NAMED_SHAPES, "panel", "frame", "bar", "slice", "marker", "button", "checked", "unchecked", "window")
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;-/$%&#@!?'()+*=_"


class NoRoomError(Exception):
    """What was thrown has no room in the picture: throw again."""


@cache
def _outline(kind: str) -> list[tuple[float, float]]:
    """Corners in a square from -1 to 1."""
    if kind == "triangle":
        return [(0, -1), (1, 0.9), (-1, 0.9)]
    if kind == "diamond":
        return [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]
    if kind == "cross":
        a = 0.36
        return [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    if kind == "star":
        turns = [(math.pi * (i / 5 - 0.5), 1 if i % 2 == 0 else 0.42) for i in range(10)]
        return [(r * math.cos(t), r * math.sin(t)) for t, r in turns]
    if kind == "heart":
        turns = [2 * math.pi * i / 40 for i in range(40)]
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.05,
            )
            for t in turns
        ]
    return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]


@lru_cache(maxsize=4096)
def shape_mask(kind: str, radius: int) -> Image.Image:
    """Smooth mask of 2 * radius + 1 pixels."""
    side, scale = 2 * radius + 1, 4
    mask = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(mask)
    whole = (0, 0, side * scale - 1, side * scale - 1)
    if kind in ("circle", "ring"):
        draw.ellipse(whole, 255)
        if kind == "ring":
            inset = side * scale * 0.24
            draw.ellipse((inset, inset, whole[2] - inset, whole[3] - inset), 0)
    else:
        half = side * scale / 2
        draw.polygon([(half + x * half, half + y * half) for x, y in _outline(kind)], 255)
    return mask.reduce(scale)


class Canvas:
    """320 x 320 pixels with a family of fonts."""

    def __init__(self, rng: random.Random, split: str, dark: float = 0.15):
        self.rng, self.split = rng, split
        self.image, self.paper = colours.background(rng, dark)
        self.draw = ImageDraw.Draw(self.image)
        self.chars: list[tuple[str, int, int, int, int]] = []
        self.shapes: list[tuple[str, str, int, int, int, int]] = []
        self.taken: list[Box] = []
        self._family = rng.choice(fonts.families(split))

    def unseen(self) -> bool:
        """Whether to arrange things in the way that is kept from training."""
        return self.split != "train" and self.rng.random() < 0.3

    def face(self, size: int, bold: bool | None = None) -> fonts.Face:
        """bold: None leaves it to chance."""
        bold = self.rng.random() < 0.35 if bold is None else bold
        return fonts.face(self._family[bold], size)

    def other_family(self) -> None:
        self._family = self.rng.choice(fonts.families(self.split))

    def text(self, x: float, y: float, text: str, face: fonts.Face, ink: RGB) -> Box:
        """Writes a line whose tall letters begin at y."""
        pen, baseline = float(x), round(y) + face.ascent
        for char in text:
            mask, dx, dy, advance = face.glyph(char)
            if char != " ":
                left, top = round(pen) + dx, baseline + dy
                box = (left, top, left + mask.width, top + mask.height)
                self.image.paste(ink, box, mask)
                self.chars.append((char, *box))
            pen += advance
        return round(x), round(y), round(pen), round(y) + face.height

    def centred(self, box: Box, text: str, face: fonts.Face, ink: RGB) -> Box:
        x = (box[0] + box[2] - face.width(text)) / 2
        return self.text(x, (box[1] + box[3] - face.height) / 2 + 0.5, text, face, ink)

    def right(self, x: float, y: float, text: str, face: fonts.Face, ink: RGB) -> Box:
        """Writes a line that ends at x."""
        return self.text(x - face.width(text), y, text, face, ink)

    def shape(self, kind: str, colour: str, x: int, y: int, radius: int) -> None:
        box = (x - radius, y - radius, x + radius + 1, y + radius + 1)
        self.image.paste(colours.shade(self.rng, colour), box, shape_mask(kind, radius))
        self.shapes.append((kind, colour, *box))

    def panel(self, box: Box, colour: str, kind: str = "panel", corner: int = 0, edge: RGB | None = None) -> RGB:
        """A filled rectangle; its shade."""
        rgb = colours.shade(self.rng, colour)
        inner = (box[0], box[1], box[2] - 1, box[3] - 1)
        if corner:
            self.draw.rounded_rectangle(inner, corner, rgb, edge)
        else:
            self.draw.rectangle(inner, rgb, edge)
        self.shapes.append((kind, colour, *box))
        return rgb

    def place(self, width: int, height: int, gap: int = 6, area: Box = (4, 4, SIZE - 4, SIZE - 4)) -> Box | None:
        """A free box of that size, taken from now on; None where none was found."""
        if width > area[2] - area[0] or height > area[3] - area[1]:
            return None
        for _ in range(40):
            x = self.rng.randint(area[0], area[2] - width)
            y = self.rng.randint(area[1], area[3] - height)
            box = (x, y, x + width, y + height)
            if all(
                box[2] + gap <= old[0] or old[2] + gap <= box[0] or box[3] + gap <= old[1] or old[3] + gap <= box[1]
                for old in self.taken
            ):
                self.taken.append(box)
                return box
        return None

    def fitting(self, text: str, width: int, largest: int, smallest: int = 13, bold: bool | None = None) -> fonts.Face:
        """The largest face in which a text is not wider."""
        bold = self.rng.random() < 0.35 if bold is None else bold
        for size in range(largest, smallest, -1):
            face = self.face(size, bold)
            if face.width(text) <= width:
                return face
        return self.face(smallest, bold)

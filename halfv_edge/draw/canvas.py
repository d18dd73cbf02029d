"""A page that can be written as SVG in HTML, or as PNG. Lengths are CSS pixels."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # of the PNG
FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
Point = tuple[float, float]


class Canvas:
    """What is drawn, in order; `svg()` and `png()` render it."""

    def __init__(self, width: int, height: int, paper: str):
        self.width = width
        self.height = height
        self.paper = paper
        self.shapes: list[tuple[Any, ...]] = []

    def rect(self, x: float, y: float, width: float, height: float, fill: str, outline: str | None = None) -> None:
        self.shapes.append(("rect", x, y, width, height, fill, outline))

    def line(self, points: Sequence[Point], color: str, width: float = 1.0) -> None:
        self.shapes.append(("line", list(points), color, width))

    def text(
        self, x: float, y: float, words: str, color: str, size: int = 13, anchor: str = "start", bold: bool = False
    ) -> None:
        """y is the baseline; anchor: start, middle or end."""
        self.shapes.append(("text", x, y, words, color, size, anchor, bold))

    def image(self, x: float, y: float, width: float, height: float, image: Image.Image) -> None:
        self.shapes.append(("image", x, y, width, height, image))

    def svg(self) -> str:
        parts = [getattr(self, f"_svg_{kind}")(*rest) for kind, *rest in self.shapes]
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'style="max-width:100%;height:auto" font-family="{FONT}">'
        )
        return "\n".join([head, *parts, "</svg>"])

    @staticmethod
    def _svg_rect(x: float, y: float, width: float, height: float, fill: str, outline: str | None) -> str:
        edge = f' stroke="{outline}" stroke-width="2"' if outline else ""
        return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{edge}/>'

    @staticmethod
    def _svg_line(points: Sequence[Point], color: str, width: float) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return (
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}" stroke-linejoin="round"/>'
        )

    @staticmethod
    def _svg_text(x: float, y: float, words: str, color: str, size: int, anchor: str, bold: bool) -> str:
        weight = ' font-weight="600"' if bold else ""
        style = f'fill="{color}" font-size="{size}" text-anchor="{anchor}"{weight}'
        return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(words)}</text>'

    @staticmethod
    def _svg_image(x: float, y: float, width: float, height: float, image: Image.Image) -> str:
        raw = io.BytesIO()
        small = image.copy()
        small.thumbnail((round(SCALE * width), round(SCALE * height)))
        small.save(raw, "JPEG", quality=85)
        data = base64.b64encode(raw.getvalue()).decode()
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        return f'<image {place} href="data:image/jpeg;base64,{data}"/>'

    def png(self) -> bytes:
        page = Image.new("RGB", (self.width * SCALE, self.height * SCALE), self.paper)
        draw = ImageDraw.Draw(page)
        for kind, *rest in self.shapes:
            if kind == "rect":
                x, y, width, height, fill, outline = rest
                box = tuple(round(SCALE * side) for side in (x, y, x + width, y + height))
                draw.rectangle((*box[:2], max(box[0], box[2] - 1), max(box[1], box[3] - 1)), fill, outline, 2 * SCALE)
            elif kind == "line":
                points, color, width = rest
                scaled = [(SCALE * x, SCALE * y) for x, y in points]
                draw.line(scaled, color, max(1, round(SCALE * width)), joint="curve")
            elif kind == "text":
                x, y, words, color, size, anchor, bold = rest
                font = ImageFont.load_default(SCALE * size)
                stroke = {"stroke_width": 1, "stroke_fill": color} if bold else {}
                at = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
                draw.text((SCALE * x, SCALE * y), words, color, font, at, **stroke)
            else:
                x, y, width, height, image = rest
                page.paste(
                    image.resize((round(SCALE * width), round(SCALE * height))), (round(SCALE * x), round(SCALE * y))
                )
        raw = io.BytesIO()
        page.save(raw, "PNG", optimize=True)
        return raw.getvalue()

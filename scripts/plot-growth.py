#!/usr/bin/env python3
"""Draws how time and FLOPs of a prompt grow with the tokens of its picture, from what `halfv bench --json` printed:

halfv bench --shape scaled --no-encoder --tokens 1024,4096,16384 --policy yopo,yopo+profile --json > growth.json
scripts/plot-growth.py growth.json docs/growth.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from halfv_edge.draw.canvas import Canvas

COLORS = {"unpruned": "#8a8a8a", "profile": "#2f6fb2", "yopo": "#d1603d", "yopo+profile": "#3a8f5c"}
INK, FAINT = "#1a1a1a", "#c9c9c9"
WIDTH, HEIGHT, LEFT, TOP, BETWEEN = 360, 250, 56, 52, 66


def panel(page: Canvas, x: float, title: str, lines: dict[str, list[tuple[int, float]]]) -> None:
    """Both scales are linear, so that what is linear is straight."""
    most_tokens = max(n for line in lines.values() for n, _ in line)
    most = max(value for line in lines.values() for _, value in line)

    def place(n: float, value: float) -> tuple[float, float]:
        return x + n / most_tokens * WIDTH, TOP + HEIGHT * (1 - value / most)

    page.text(x, TOP - 12, title, INK, 14, bold=True)
    page.line([(x, TOP), (x, TOP + HEIGHT), (x + WIDTH, TOP + HEIGHT)], INK, 1)
    for part in (0.5, 1.0):
        page.line([place(0, part * most), place(most_tokens, part * most)], FAINT, 1)
        page.text(x - 6, place(0, part * most)[1] + 4, f"{part * most:.3g}", INK, 11, anchor="end")
    for n in sorted({n for line in lines.values() for n, _ in line}):
        page.text(place(n, 0)[0], TOP + HEIGHT + 16, str(n), INK, 11, anchor="middle")
    for name, line in lines.items():
        page.line([place(0, 0), *(place(*point) for point in line)], COLORS[name], 2)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    report: dict[str, Any] = json.loads(source.read_text())
    rows = [row for row in report["rows"] if row["run"] in COLORS]
    page = Canvas(2 * (LEFT + WIDTH) + BETWEEN, TOP + HEIGHT + 66, "#ffffff")
    for at, (title, value) in enumerate(
        {
            "Time of a prompt, s": lambda row: row["prefill_s"]["median"],
            "FLOPs of a prompt, 10^12": lambda row: row["flops"] / 1e12,
        }.items()
    ):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            lines.setdefault(row["run"], []).append((row["n_visual"], value(row)))
        panel(page, LEFT + at * (WIDTH + BETWEEN), title, lines)
    x = float(LEFT)
    for name, color in COLORS.items():
        page.rect(x, TOP + HEIGHT + 40, 12, 12, color)
        page.text(x + 18, TOP + HEIGHT + 51, name, INK, 12)
        x += 50 + 8 * len(name)
    page.text(x, TOP + HEIGHT + 51, f"over visual tokens; {report['subject']}, {report['machine']['cpu']}", INK, 11)
    target.write_text(page.svg())


if __name__ == "__main__":
    main()

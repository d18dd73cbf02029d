#!/usr/bin/env python3
"""How processor time and FLOPs of a prompt grow with the tokens of its picture: unpruned, HalfV, YOPO, and both.

scripts/time-over-tokens.py measure tiny q8_0 1024,4096,16384 > lines.jsonl
scripts/time-over-tokens.py draw lines.jsonl docs/time-over-tokens.svg

Processor seconds of one thread, which other programs change least; random weights of a shape of `halfv bench`.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path

import halfv_cpp

from halfv_edge import files
from halfv_edge.draw.canvas import Canvas
from halfv_edge.measure import policies
from halfv_edge.measure.bench import pictures, shapes
from halfv_edge.profile import stored
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client

COLORS = {"unpruned": "#8a8a8a", "profile": "#2f6fb2", "yopo": "#d1603d", "yopo+profile": "#3a8f5c"}
INK, FAINT = "#1a1a1a", "#c9c9c9"
WIDTH, HEIGHT, LEFT, TOP, BETWEEN = 360, 250, 56, 52, 66
BEFORE, AFTER = list(range(5, 13)), list(range(20, 60))  # text, as in `halfv bench`


def measure(shape: str, ftype: str, counts: list[int]) -> None:
    """A line for each number of tokens and way to run."""
    path = shapes.model_file(shape, shapes.SHAPES[shape], ftype, files.cache_folder() / "shapes")
    about = ModelFile.read(path)
    model = policies.PolicyModel(about.n_layer, stored.read_gguf(about))
    for n in counts:
        for name in COLORS:
            profile = policies.parse_one(name, model).profile
            seconds, flops = _prompt(path, profile, about.n_layer, n)
            line = {"shape": shape, "ftype": ftype, "run": name, "tokens": n, "seconds": seconds, "flops": flops}
            print(json.dumps(line), flush=True)


def _prompt(path: Path, profile: Profile | None, n_layer: int, n: int) -> tuple[float, float]:
    def under(pointer: int) -> None:
        halfv_cpp.set_model_profile(pointer, profile.to_c() if profile else None)

    with Client(
        path, n_ctx=n + 256, n_batch=2048, type_k="f16", type_v="f16", flash_attn=True, on_model=under, packed=False
    ) as client:
        rows, columns = shapes.grid(n)
        embd = pictures.random_image(n, client.n_embd_inp)
        begun = time.process_time()
        client.text(BEFORE, logits_last=False)
        client.image(embd, pictures.grid_positions(client.next_pos[0], rows, columns) if client.is_mrope else None)
        client.text(AFTER)
        client.logits()
        seconds = time.process_time() - begun
        dense, spent = ctypes.c_double(), ctypes.c_double()
        values = (profile or Profile.default(n_layer)).to_c()
        counts = len(BEFORE), n, len(AFTER)
        halfv_cpp.check(
            halfv_cpp.halfv_flops(client.model, ctypes.byref(values), *counts, ctypes.byref(dense), ctypes.byref(spent))
        )
    return seconds, spent.value


def panel(page: Canvas, x: float, title: str, lines: dict[str, list[tuple[int, float]]]) -> None:
    """Both scales are linear, so that what is linear is straight."""
    most_tokens = max(n for line in lines.values() for n, _ in line)
    most = max(value for line in lines.values() for _, value in line)

    def place(n: float, value: float) -> tuple[float, float]:
        return x + n / most_tokens * WIDTH, TOP + HEIGHT * (1 - value / most)

    page.text(x, TOP - 14, title, INK, 14, bold=True)
    page.line([(x, TOP), (x, TOP + HEIGHT), (x + WIDTH, TOP + HEIGHT)], INK, 1)
    for part in (0.5, 1.0):
        page.line([place(0, part * most), place(most_tokens, part * most)], FAINT, 1)
        page.text(x - 6, place(0, part * most)[1] + 4, f"{part * most:.3g}", INK, 11, anchor="end")
    for n in sorted({n for line in lines.values() for n, _ in line}):
        page.text(place(n, 0)[0], TOP + HEIGHT + 16, str(n), INK, 11, anchor="middle")
    for name, line in lines.items():
        page.line([place(0, 0), *(place(*point) for point in sorted(line))], COLORS[name], 2)


def draw(source: Path, target: Path) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    page = Canvas(2 * (LEFT + WIDTH) + BETWEEN, TOP + HEIGHT + 66, "#ffffff")
    for at, (title, key, unit) in enumerate(
        (("Processor seconds of a prompt", "seconds", 1.0), ("FLOPs of a prompt, 10^9", "flops", 1e9))
    ):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            lines.setdefault(row["run"], []).append((row["tokens"], row[key] / unit))
        panel(page, LEFT + at * (WIDTH + BETWEEN), title, lines)
    x = float(LEFT)
    for name, color in COLORS.items():
        page.rect(x, TOP + HEIGHT + 40, 12, 12, color)
        page.text(x + 18, TOP + HEIGHT + 51, name, INK, 12)
        x += 50 + 8 * len(name)
    page.text(x, TOP + HEIGHT + 51, f"over visual tokens; shape {rows[0]['shape']}, {rows[0]['ftype']}", INK, 11)
    target.write_text(page.svg() + "\n")


def main() -> None:
    match sys.argv[1:]:
        case ["measure", shape, ftype, counts]:
            measure(shape, ftype, [int(n) for n in counts.split(",")])
        case ["draw", source, target]:
            draw(Path(source), Path(target))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()

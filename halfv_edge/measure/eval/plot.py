"""The frontier: what is retained over time and over FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from halfv_edge.draw.canvas import Canvas
from halfv_edge.measure.eval.frontier import Row, flops_share, kind, time_share
from halfv_edge.measure.eval.results import EvalReport, PolicyRow

PAPER, INK, FAINT, GRID = "#ffffff", "#1a1a1a", "#8a8a8a", "#e6e6e6"
OWN = "#d1603d"  # the profile and what is made of it
COLORS = ("#2f6fb2", "#4d9078", "#8e6bb0", "#b08d2f", "#5b6770", "#b5528f", "#3aa0a8", "#7a5230")
OWN_KINDS = ("profile", "keep", "prepared")
WIDTH, HEIGHT, TOP, BOTTOM, LEFT, GAP = 1120, 470, 84, 60, 64, 70
DOT, LETTER, LINE = 8, 6.2, 12
MOST = 1.5  # retention that is drawn


class Retained(NamedTuple):
    """A row with something to retain, and the ends of its interval."""

    policy: PolicyRow
    retention: float
    low: float
    high: float


def eval_plot(report: EvalReport) -> bytes:
    """Draw what each policy retains over its time and its FLOPs.

    Args:
        report: From `run_eval`, of policies; those without a score to retain are left out.

    Returns:
        A PNG.
    """
    page = Canvas(WIDTH, HEIGHT, PAPER)
    page.text(16, 32, "What is retained of the unpruned model's score", INK, 18, bold=True)
    page.text(16, 54, f"{report.model}, {report.n_questions} questions; bars are 95% intervals", FAINT, 12)
    rows = [
        Retained(row, row.retention, *row.retention_interval)
        for row in report.rows
        if isinstance(row, PolicyRow) and row.retention is not None and row.retention_interval is not None
    ]
    if rows:
        width = (WIDTH - 2 * LEFT - GAP) / 2
        _panel(page, rows, LEFT, width, time_share, "time to first token, of the unpruned")
        _panel(page, rows, LEFT + width + GAP, width, flops_share, "FLOPs, of the unpruned")
    return page.png()


def _panel(
    page: Canvas, rows: list[Retained], x0: float, width: float, share: Callable[[Row], float], title: str
) -> None:
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    low, high = max(0.0, min(low, 0.9) - 0.02), min(max(high, 1.0), MOST) + 0.02
    shares = [share(row.policy) for row in rows]
    left, right = min(shares) - 0.05, max(1.0, *shares) + 0.03
    unit = next(unit for unit in (0.05, 0.1, 0.25) if (right - left) / unit <= 8 or unit == 0.25)

    def x(value: float) -> float:
        return x0 + width * (value - left) / (right - left)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 8 or step == 0.2)
    for tick in range(int(low / step), int(high / step) + 1):
        if low <= tick * step <= high:
            page.line([(x0, y(tick * step)), (x0 + width, y(tick * step))], GRID)
            page.text(x0 - 8, y(tick * step) + 4, f"{100 * tick * step:.0f}%", FAINT, 11, anchor="end")
    for tick in range(math.ceil(left / unit), int(right / unit) + 1):
        page.text(x(tick * unit), HEIGHT - BOTTOM + 18, f"{100 * tick * unit:.0f}%", FAINT, 11, anchor="middle")
    page.line([(x0, HEIGHT - BOTTOM), (x0 + width, HEIGHT - BOTTOM)], INK)
    page.text(x0 + width / 2, HEIGHT - 18, title, INK, 13, anchor="middle")

    labels: list[tuple[float, float, str, str]] = []
    families: dict[str, list[Retained]] = {}
    for row in rows:
        name = kind(row.policy.policy)
        families.setdefault("own" if name in OWN_KINDS[:2] else name, []).append(row)
    others = [name for name in families if name != "own"]
    for name, family in families.items():
        color = OWN if name == "own" else COLORS[others.index(name) % len(COLORS)]
        points = sorted((x(share(row.policy)), y(row.retention)) for row in family)
        if len(points) > 1:
            page.line(points, color, 1.5)
        for row in family:
            at = x(share(row.policy))
            page.line([(at, y(row.low)), (at, y(min(row.high, high)))], color, 1)
            page.rect(at - DOT / 2, y(min(row.retention, high)) - DOT / 2, DOT, DOT, color)
            labels.append((at + DOT, y(min(row.retention, high)) - 5, row.policy.policy, color))
    _write(page, labels)


def _write(page: Canvas, labels: list[tuple[float, float, str, str]]) -> None:
    """Each beside its dot, or as near above or below as there is room."""
    taken: list[tuple[float, float, float]] = []
    for left, line, words, color in sorted(labels, key=lambda label: label[1]):
        right = left + LETTER * len(words)

        def free(at: float, left: float = left, right: float = right) -> bool:
            return all(abs(at - other) >= LINE or left >= end or start >= right for start, end, other in taken)

        steps = (half * sign * LINE / 2 for half in range(99) for sign in (1, -1))
        line = next(line + step for step in steps if free(line + step))
        taken.append((left, right, line))
        page.text(left, line, words, color, 11)

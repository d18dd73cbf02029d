"""What a bench found of prompts, as bars of the time to the first token, with the ceiling as a mark."""

from __future__ import annotations

from halfv_edge.draw.canvas import Canvas
from halfv_edge.errors import HalfVError
from halfv_edge.measure.bench.results import BenchReport, PromptRow

PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#8a8a8a"
ENCODE, PREFILL, SELECT = "#b9c4d0", "#2f6fb2", "#d1603d"
WIDTH, LEFT, RIGHT, ROW, GAP = 860, 190, 150, 26, 18


def bench_plot(report: BenchReport) -> bytes:
    """Draw the time to the first token.

    Args:
        report: From `run_bench`, of prompts: other measurements have no such time.

    Returns:
        A PNG.

    Raises:
        HalfVError: The report is of another measurement.
    """
    rows = [row for row in report.rows if isinstance(row, PromptRow)]
    if not rows:
        raise HalfVError("A plot shows the time of a prompt, and these are other measurements.")
    names = list(dict.fromkeys(row.picture for row in rows))
    height = 84 + len(rows) * ROW + len(names) * (GAP + 14) + 30
    page = Canvas(WIDTH, height, PAPER)
    scale = (WIDTH - LEFT - RIGHT) / max(row.ttft_s.median for row in rows)
    page.text(16, 30, "Time to first token", INK, 18, bold=True)
    page.text(16, 50, f"{report.subject}, {report.weights}, {report.n_threads} threads", FAINT, 12)
    _legend(page, report.encoder)
    y = 72.0
    for name in names:
        group = [row for row in rows if row.picture == name]
        page.text(16, y + GAP, f"{name}, {group[0].n_visual} visual tokens", FAINT, 12)
        y += GAP + 10
        for row in group:
            _bar(page, row, y, scale, is_base=row is group[0])
            y += ROW
    page.text(16, height - 12, f"{report.machine['cpu']}; {report.commit}", FAINT, 11)
    return page.png()


def _legend(page: Canvas, encoder: bool) -> None:
    x = 420
    names = [("vision encoder", ENCODE)] if encoder else []
    for name, color in [*names, ("prefill", PREFILL), ("selection", SELECT)]:
        page.rect(x, 40, 12, 12, color)
        page.text(x + 17, 51, name, INK, 12)
        x += 30 + 7 * len(name) + 16
    page.line([(x + 5, 38), (x + 5, 54)], INK, 2)
    page.text(x + 12, 51, "ceiling", INK, 12)


def _bar(page: Canvas, row: PromptRow, y: float, scale: float, is_base: bool) -> None:
    select = row.select_s.median if row.select_s else 0.0
    page.text(LEFT - 8, y + 15, row.run, INK, 13, anchor="end")
    x = float(LEFT)
    for color, length in ((ENCODE, row.encode_s.median), (PREFILL, row.prefill_s.median - select), (SELECT, select)):
        page.rect(x, y + 2, length * scale, ROW - 8, color)
        x += length * scale
    words = f"{row.ttft_s.median:.2f} s"
    if not is_base:
        ceiling = LEFT + row.ttft_s.median * row.ttft_ratio.median / row.ttft_ceiling * scale
        page.line([(ceiling, y), (ceiling, y + ROW - 4)], INK, 2)
        words += f"  {row.ttft_ratio.median:.1f}x"
        x = max(x, ceiling)
    page.text(x + 8, y + 15, words, INK, 13)

"""What a bench found, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from halfv_edge.measure.bench.results import BenchReport, FollowUpRow, OffRow, PromptRow, Row, Spread

MIB = 2**20


def bench_table(report: BenchReport) -> str:
    """What a bench found, as a table in Markdown under a line that says what was measured on what.

    Args:
        report: From `run_bench`.

    Returns:
        The text, as `halfv bench` prints it.
    """
    first = report.rows[0]
    rows = [_cells(row, first, report.encoder) for row in report.rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join([_about(report), "", *("| " + " | ".join(line) + " |" for line in lines)])


def _about(report: BenchReport) -> str:
    about = f"{report.subject} ({report.arch}, {report.weights}), {report.n_threads} threads"
    devices = report.machine["devices"]
    if report.n_gpu_layers and devices != "CPU":
        about += f", {'all' if report.n_gpu_layers < 0 else report.n_gpu_layers} layers on {devices}"
    about += "" if report.encoder else "; no vision encoder"
    about += "" if report.packed else "; weights not packed for the processor, in all rows"
    return about + f"; median (min-max) of {report.repeats}; {report.commit}; {report.machine['cpu']}"


def _cells(row: Row, first: Row, encoder: bool) -> dict[str, str]:
    if isinstance(row, PromptRow):
        return _prompt(row, row.run == first.run, encoder)
    return _follow_up(row) if isinstance(row, FollowUpRow) else _off(row)


def _prompt(row: PromptRow, is_base: bool, encoder: bool) -> dict[str, str]:
    cells = {
        "picture": row.picture,
        "visual tokens": str(row.n_visual),
        "run": row.run,
        "kept": f"{row.n_kept} / {row.n_deep}",
        "TTFT s": seconds(row.ttft_s),
        "faster": "" if is_base else factor(row.ttft_ratio),
        "ceiling": "" if is_base else f"{row.ttft_ceiling:.2f}",
        "encoder s": seconds(row.encode_s),
        "prefill s": seconds(row.prefill_s),
        "prefill faster": "" if is_base else factor(row.prefill_ratio),
        "FLOPs ratio": "" if is_base else f"{row.flops_ratio:.2f}",
        "selection ms": f"{1e3 * row.select_s.median:.1f}" if row.select_s else "",
        "prefill tok/s": f"{row.prefill_tokens_per_s:.0f}",
        "decode tok/s": f"{row.decode_tokens_per_s.median:.1f}",
        "KV MiB": mebibytes(row.kv_bytes),
        "peak MiB": mebibytes(row.peak_bytes),
    }
    left_out: Sequence[str] = () if encoder else ("picture", "TTFT s", "faster", "ceiling", "encoder s")
    return {title: cell for title, cell in cells.items() if title not in left_out}


def _follow_up(row: FollowUpRow) -> dict[str, str]:
    return {
        "visual tokens": str(row.n_visual),
        "run": row.run,
        "picture, before Enter s": seconds(row.picture_s),
        "Enter to first token s": seconds(row.first_s),
        "second question to first token s": seconds(row.second_s),
    }


def _off(row: OffRow) -> dict[str, str]:
    return {
        "visual tokens": str(row.n_visual),
        "run": row.run,
        "prefill s": seconds(row.prefill_s),
        "prefill costs": percent(row.prefill_cost),
        "decoding costs": percent(row.decode_cost),
    }


def seconds(value: Spread) -> str:
    return f"{value.median:.3f} ({value.min:.3f}-{value.max:.3f})"


def factor(value: Spread) -> str:
    return f"{value.median:.2f} ({value.min:.2f}-{value.max:.2f})"


def percent(value: Spread) -> str:
    low, high = (100 * (end - 1) for end in (value.min, value.max))
    return f"{100 * (value.median - 1):+.1f} % ({low:+.1f} to {high:+.1f})"


def mebibytes(value: float | None) -> str:
    return f"{value / MIB:.1f}" if value is not None else ""

"""What was measured, as a table and as a plot."""

from __future__ import annotations

from typing import Any

from halfv_edge.draw.canvas import Canvas
from halfv_edge.measure.bench.run import Spread

MIB = 2**20
PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#8a8a8a"
COLORS = {"encode_s": "#b9c4d0", "prefill_s": "#2f6fb2", "select_s": "#d1603d"}
NAMES = {"encode_s": "vision encoder", "prefill_s": "prefill", "select_s": "selection"}
WIDTH, LEFT, RIGHT, ROW, GAP = 860, 190, 150, 26, 18


def as_table(report: dict[str, Any]) -> str:
    cells = {"prompt": _prompt, "follow_up": _follow_up, "off": _off}[report["measurement"]]
    rows = [cells(row, report) for row in report["rows"]]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join([_about(report), "", *("| " + " | ".join(line) + " |" for line in lines)])


def _about(report: dict[str, Any]) -> str:
    about = f"{report['subject']} ({report['arch']}, {report['weights']}), {report['n_threads']} threads"
    about += f", {report['n_gpu_layers']} layers on {report['machine']['devices']}" if report["n_gpu_layers"] else ""
    about += "" if report["encoder"] else "; no vision encoder"
    return about + f"; median (min-max) of {report['repeats']}; {report['commit']}; {report['machine']['cpu']}"


def _prompt(row: dict[str, Any], report: dict[str, Any]) -> dict[str, str]:
    is_base = row["run"] == report["rows"][0]["run"]
    cells = {
        "picture": row["picture"],
        "visual tokens": str(row["n_visual"]),
        "run": row["run"],
        "kept": f"{row['n_kept']} / {row['n_deep']}",
        "TTFT s": seconds(row["ttft_s"]),
        "faster": "" if is_base else factor(row["ttft_ratio"]),
        "ceiling": "" if is_base else f"{row['ttft_ceiling']:.2f}",
        "encoder s": seconds(row["encode_s"]),
        "prefill s": seconds(row["prefill_s"]),
        "prefill faster": "" if is_base else factor(row["prefill_ratio"]),
        "FLOPs ratio": "" if is_base else f"{row['flops_ratio']:.2f}",
        "selection ms": f"{1e3 * row['select_s']['median']:.1f}" if row["select_s"] else "",
        "prefill tok/s": f"{row['prefill_tokens_per_s']:.0f}",
        "decode tok/s": f"{row['decode_tokens_per_s']['median']:.1f}",
        "KV MiB": mebibytes(row["kv_bytes"]),
        "peak MiB": mebibytes(row.get("peak_bytes")),
    }
    if not report["encoder"]:
        for name in ("picture", "TTFT s", "faster", "ceiling", "encoder s"):
            del cells[name]
    return cells


def _follow_up(row: dict[str, Any], _report: dict[str, Any]) -> dict[str, str]:
    titles = {
        "picture_s": "picture, before Enter s",
        "first_s": "Enter to first token s",
        "second_s": "second question to first token s",
    }
    return {"visual tokens": str(row["n_visual"]), "run": row["run"]} | {
        title: seconds(row[key]) for key, title in titles.items()
    }


def _off(row: dict[str, Any], _report: dict[str, Any]) -> dict[str, str]:
    return {
        "visual tokens": str(row["n_visual"]),
        "run": row["run"],
        "prefill s": seconds(row["prefill_s"]),
        "prefill costs": percent(row["prefill_cost"]),
        "decoding costs": percent(row["decode_cost"]),
    }


def seconds(value: Spread) -> str:
    return f"{value['median']:.3f} ({value['min']:.3f}-{value['max']:.3f})"


def factor(value: Spread) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})"


def percent(value: Spread) -> str:
    low, high = (100 * (value[end] - 1) for end in ("min", "max"))
    return f"{100 * (value['median'] - 1):+.1f} % ({low:+.1f} to {high:+.1f})"


def mebibytes(value: float | None) -> str:
    return f"{value / MIB:.1f}" if value is not None else ""


#
# plot
#


def as_png(report: dict[str, Any]) -> bytes:
    """Bars of the time to the first token, with the ceiling as a mark."""
    rows = report["rows"]
    names = list(dict.fromkeys(row["picture"] for row in rows))
    height = 84 + len(rows) * ROW + len(names) * (GAP + 14) + 30
    page = Canvas(WIDTH, height, PAPER)
    longest = max(row["ttft_s"]["median"] for row in rows)
    scale = (WIDTH - LEFT - RIGHT) / longest
    page.text(16, 30, "Time to first token", INK, 18, bold=True)
    page.text(16, 50, f"{report['subject']}, {report['weights']}, {report['n_threads']} threads", FAINT, 12)
    _legend(page, report["encoder"])
    y = 72.0
    for name in names:
        group = [row for row in rows if row["picture"] == name]
        page.text(16, y + GAP, f"{name}, {group[0]['n_visual']} visual tokens", FAINT, 12)
        y += GAP + 10
        for row in group:
            _bar(page, row, y, scale, is_base=row is group[0])
            y += ROW
    page.text(16, height - 12, f"{report['machine']['cpu']}; {report['commit']}", FAINT, 11)
    return page.png()


def _legend(page: Canvas, encoder: bool) -> None:
    x = 420
    for key, name in NAMES.items():
        if key == "encode_s" and not encoder:
            continue
        page.rect(x, 40, 12, 12, COLORS[key])
        page.text(x + 17, 51, name, INK, 12)
        x += 30 + 7 * len(name) + 16
    page.line([(x + 5, 38), (x + 5, 54)], INK, 2)
    page.text(x + 12, 51, "ceiling", INK, 12)


def _bar(page: Canvas, row: dict[str, Any], y: float, scale: float, is_base: bool) -> None:
    select = row["select_s"]["median"] if row["select_s"] else 0.0
    parts = {
        "encode_s": row["encode_s"]["median"],
        "prefill_s": row["prefill_s"]["median"] - select,
        "select_s": select,
    }
    page.text(LEFT - 8, y + 15, row["run"], INK, 13, anchor="end")
    x = float(LEFT)
    for key, length in parts.items():
        page.rect(x, y + 2, length * scale, ROW - 8, COLORS[key])
        x += length * scale
    words = f"{row['ttft_s']['median']:.2f} s"
    if not is_base:
        ceiling = LEFT + row["ttft_s"]["median"] * row["ttft_ratio"]["median"] / row["ttft_ceiling"] * scale
        page.line([(ceiling, y), (ceiling, y + ROW - 4)], INK, 2)
        words += f"  {row['ttft_ratio']['median']:.1f}x"
        x = max(x, ceiling)
    page.text(x + 8, y + 15, words, INK, 13)

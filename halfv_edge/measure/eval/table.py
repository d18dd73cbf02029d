"""What an evaluation found, as tables."""

from __future__ import annotations

from halfv_edge.measure.eval.intervals import Interval
from halfv_edge.measure.eval.results import ConversationRow, EqualRow, EvalReport, PairRow, PolicyRow


def eval_table(report: EvalReport) -> str:
    """What an evaluation found, as tables in Markdown under a line that says what was asked of what.

    Args:
        report: From `run_eval`.

    Returns:
        The text, as `halfv eval` prints it.
    """
    about = f"{report.model}, {report.n_questions} questions on {report.n_pictures} pictures"
    about += f"; 95% intervals; {report.commit}; {report.machine['cpu']}, {report.n_threads} threads"
    talks = [row for row in report.rows if isinstance(row, ConversationRow)]
    rows = [row for row in report.rows if isinstance(row, PolicyRow)]
    tables = [[_conversation_cells(row) for row in talks], [_cells(row) for row in rows], [*map(_task_cells, rows)]]
    if len(report.equal) > 1:
        tables.append([_equal_cells(row) for row in report.equal])
    tables.append([_pair_cells(row) for row in report.pairs])
    return "\n\n".join([about, *(_table(table) for table in tables if table)])


def _table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: PolicyRow) -> dict[str, str]:
    return {
        "policy": row.policy,
        "kept": f"{row.n_visual:.0f} -> {row.n_kept:.0f} -> {row.n_deep:.0f}",
        "FLOPs ratio": f"{row.flops_ratio:.2f}",
        "TTFT s": f"{row.ttft_s:.3f}",
        "faster": f"{row.ttft_ratio:.2f}",
        "score %": _percent(row.score, row.score_interval),
        "retention %": _percent(row.retention, row.retention_interval),
        "agrees %": f"{100 * row.agreement:.1f}",
        "KL": f"{row.kl:.4f}",
    }


def _task_cells(row: PolicyRow) -> dict[str, str]:
    cells = {"policy": row.policy}
    for name, task in row.tasks.items():
        text = _percent(task.score, task.interval)
        cells[f"{name} ({task.n})"] = text + (f", F1 {100 * task.f1:.1f}" if task.f1 is not None else "")
    return cells


def _equal_cells(row: EqualRow) -> dict[str, str]:
    return {
        "kind": row.kind,
        "retention % at the profile's time": _share(row.time),
        "retention % at its FLOPs": _share(row.flops),
    }


def _pair_cells(row: PairRow) -> dict[str, str]:
    return {
        "first": row.first,
        "second": row.second,
        "first leads by": row.leads,
        "pictures": str(row.n_pictures),
        "first better": str(row.first_better),
        "second better": str(row.second_better),
        "p": "< 0.001" if row.p < 0.001 else f"{row.p:.3f}",
        "KL less by": f"{row.kl_less:.4f} ± {row.kl_error:.4f}",
    }


def _share(value: float | None) -> str:
    return "not reached" if value is None else f"{100 * value:.1f}"


def _conversation_cells(row: ConversationRow) -> dict[str, str]:
    first, later = row.first, row.later
    return {
        "conversation": row.way,
        "kept": f"{row.n_visual:.0f} -> {row.n_kept_first:.0f}, {row.n_kept_last:.0f} at the end",
        "before Enter s": f"{row.ahead_s:.3f}",
        "Enter to first token s": f"{first.enter_s:.3f}",
        f"first questions % ({first.n})": _percent(first.score, first.interval),
        "later: to first token s": f"{later.enter_s:.3f}",
        f"later questions % ({later.n})": _percent(later.score, later.interval),
        "later: retention %": "" if later.retention is None else f"{100 * later.retention:.1f}",
    }


def _percent(value: float | None, interval: Interval | None) -> str:
    if value is None or interval is None:
        return ""
    return f"{100 * value:.1f} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"

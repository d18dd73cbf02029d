"""Speed, quality and calibration, from Python as from the command line: docs/bench.md, eval.md and calibration.md.

The names below are the public ones. Each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfv_edge.measure.bench.options import BenchOptions as BenchOptions
    from halfv_edge.measure.bench.plot import bench_plot as bench_plot
    from halfv_edge.measure.bench.results import BenchReport as BenchReport
    from halfv_edge.measure.bench.run_bench import run_bench as run_bench
    from halfv_edge.measure.bench.subject import RandomModel as RandomModel
    from halfv_edge.measure.bench.table import bench_table as bench_table
    from halfv_edge.measure.progress import Progress as Progress

_HOME = {
    "BenchOptions": "bench.options",
    "BenchReport": "bench.results",
    "Progress": "progress",
    "RandomModel": "bench.subject",
    "bench_plot": "bench.plot",
    "bench_table": "bench.table",
    "run_bench": "bench.run_bench",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

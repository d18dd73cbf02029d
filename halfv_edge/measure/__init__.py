"""Speed, quality and calibration, from Python as from the command line: docs/bench.md, eval.md and calibration.md.

The names below are the public ones. Each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from halfv_edge.lazy_names import lazy_names

if TYPE_CHECKING:
    from halfv_edge.measure.bench.options import BenchOptions as BenchOptions
    from halfv_edge.measure.bench.plot import bench_plot as bench_plot
    from halfv_edge.measure.bench.results import BenchReport as BenchReport
    from halfv_edge.measure.bench.run_bench import run_bench as run_bench
    from halfv_edge.measure.bench.subject import RandomModel as RandomModel
    from halfv_edge.measure.bench.table import bench_table as bench_table
    from halfv_edge.measure.calibrate.page import calibration_page as calibration_page
    from halfv_edge.measure.calibrate.results import CalibrationGoal as CalibrationGoal
    from halfv_edge.measure.calibrate.results import CalibrationResult as CalibrationResult
    from halfv_edge.measure.calibrate.run_calibration import load_for_calibration as load_for_calibration
    from halfv_edge.measure.calibrate.run_calibration import run_calibration as run_calibration
    from halfv_edge.measure.calibrate.samples import Samples as Samples
    from halfv_edge.measure.calibrate.samples import find_samples as find_samples
    from halfv_edge.measure.eval.options import EvalOptions as EvalOptions
    from halfv_edge.measure.eval.plot import eval_plot as eval_plot
    from halfv_edge.measure.eval.questions import Question as Question
    from halfv_edge.measure.eval.questions import read_dialogues as read_dialogues
    from halfv_edge.measure.eval.questions import read_questions as read_questions
    from halfv_edge.measure.eval.results import EvalReport as EvalReport
    from halfv_edge.measure.eval.run_eval import run_eval as run_eval
    from halfv_edge.measure.eval.table import eval_table as eval_table
    from halfv_edge.measure.progress import Progress as Progress

_HOME = {
    "BenchOptions": "bench.options",
    "BenchReport": "bench.results",
    "CalibrationGoal": "calibrate.results",
    "CalibrationResult": "calibrate.results",
    "EvalOptions": "eval.options",
    "EvalReport": "eval.results",
    "Progress": "progress",
    "Question": "eval.questions",
    "RandomModel": "bench.subject",
    "Samples": "calibrate.samples",
    "bench_plot": "bench.plot",
    "bench_table": "bench.table",
    "calibration_page": "calibrate.page",
    "eval_plot": "eval.plot",
    "eval_table": "eval.table",
    "find_samples": "calibrate.samples",
    "load_for_calibration": "calibrate.run_calibration",
    "read_dialogues": "eval.questions",
    "read_questions": "eval.questions",
    "run_bench": "bench.run_bench",
    "run_calibration": "calibrate.run_calibration",
    "run_eval": "eval.run_eval",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)

"""A plugin of pytest: a JSON line per test as soon as it is done, so that a run that is stopped keeps what it had."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

RESULTS = "GPU_PROOF_RESULTS"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    _record(report, report.duration, report.user_properties)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported is a test that failed."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        _record(report, 0.0, [])


def _record(
    report: pytest.TestReport | pytest.CollectReport, seconds: float, properties: list[tuple[str, object]]
) -> None:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": seconds, "why": why[-600:]}
    with Path(os.environ[RESULTS]).open("a") as out:
        out.write(json.dumps(line | dict(properties)) + "\n")

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
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "why": why[-600:]}
    with Path(os.environ[RESULTS]).open("a") as out:
        out.write(json.dumps(line | dict(report.user_properties)) + "\n")

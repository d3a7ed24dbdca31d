"""Notes what came of each test in the file that TRAINER_RESULTS names, with its date; `make test-trainers` does."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line per test that ran."""
    file = os.environ.get("TRAINER_RESULTS")
    if file and report.when == "call" and "tests/trainers/" in report.nodeid:
        measured = {name: value for name, value in report.user_properties}
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1), **measured}
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**line, "date": datetime.now(UTC).strftime("%Y-%m-%d")}) + "\n")

"""What the tests of faults share, and the count of what they tried."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from tests.faults.runs import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model, rows and undisturbed runs, the same for all workers."""
    base = tmp_path_factory.getbasetemp()
    return World.made_in((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults")


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Counts what was tried, for the summary."""
    return partial(record_property, value=1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows how often each thing was ``tried``."""
    recorded: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            recorded.update(name for name, _ in report.user_properties)
    if recorded:
        terminalreporter.section("faults")
        for name, count in sorted(recorded.items()):
            terminalreporter.write_line(f"{count:4} {name}")

"""The table that `make faults` prints: what became of each promise (tests/faults/promises.py). A plugin of pytest."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.result_file import environment


@dataclass
class _Row:
    id: str
    promise: str
    tests: int = 0
    held: bool = True
    recovered_s: list[float] = field(default_factory=list)


_ROWS: dict[str, _Row] = {}
_STARTED = time.monotonic()


@pytest.fixture
def recovered(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Call with the seconds from the fault to being back at work: it goes into the table."""
    marker = request.node.get_closest_marker("fault")

    def note(seconds: float) -> None:
        _row(marker).recovered_s.append(round(seconds, 1))

    return note


def _row(marker: pytest.Mark) -> _Row:
    return _ROWS.setdefault(marker.args[0], _Row(marker.args[0], marker.args[1]))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    marker = item.get_closest_marker("fault")
    if marker and (report.when == "call" or report.failed):
        row = _row(marker)
        row.tests += 1
        row.held = row.held and report.passed


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("STUDYHALL_FAULTS_TABLE")
    if target and _ROWS:
        rows = sorted(_ROWS.values(), key=lambda row: int(row.id[1:]))
        result = {
            "name": "faults",
            "figures": [{**row.__dict__} for row in rows],
            "holds": all(row.held for row in rows),
            "environment": {**environment(), "minutes": round((time.monotonic() - _STARTED) / 60)},
        }
        Path(target).write_text(json.dumps(result, indent=1) + "\n")

"""The table that `make faults` prints: what became of each promise (tests/faults/promises.py). A plugin of pytest."""

import json
import os
import time
from collections import Counter
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
_ALL: Counter[str] = Counter()
"""How many tests each row has, run or not."""
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Counts the tests of each row, and leaves out those of other rows where STUDYHALL_FAULTS names some ("F3,F14")."""
    marked = [(item, item.get_closest_marker("fault")) for item in items]
    _ALL.update(marker.args[0] for _, marker in marked if marker)
    if wanted := os.environ.get("STUDYHALL_FAULTS"):
        left_out = [item for item, marker in marked if not marker or marker.args[0] not in wanted.split(",")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Rows whose every test was run replace those of the file; the others stay, each with its own date and commit."""
    target = os.environ.get("STUDYHALL_FAULTS_TABLE")
    if not target:
        return
    path, about = Path(target), environment()
    old = {row["id"]: row for row in json.loads(path.read_text())["figures"]} if path.is_file() else {}
    new = {
        row.id: {**row.__dict__, "date": about["date"], "commit": about["commit"]} for row in _ROWS.values() if row.tests >= _ALL[row.id]
    }
    rows = sorted((old | new).values(), key=lambda row: int(row["id"][1:]))
    about["minutes"] = round((time.monotonic() - _STARTED) / 60)
    result = {"name": "faults", "figures": rows, "holds": all(row["held"] for row in rows), "environment": about}
    path.write_text(json.dumps(result, indent=1) + "\n")

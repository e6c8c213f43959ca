"""The table that `make faults` prints: what became of each promise (tests/faults/promises.py). A plugin of pytest.

Tests may run in processes of pytest-xdist: what the table needs of a test travels with its reports.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.result_file import environment


@dataclass
class _Row:
    id: str
    promise: str
    of: int
    """How many tests it has, run or not."""
    ran: set[str] = field(default_factory=set)
    held: bool = True
    recovered_s: list[float] = field(default_factory=list)


_ROWS: dict[str, _Row] = {}
_STARTED = time.monotonic()


@pytest.fixture
def recovered(record_property: Callable[[str, object], None]) -> Callable[[float], None]:
    """Call with the seconds from the fault to being back at work: it goes into the table."""
    return lambda seconds: record_property("recovered_s", round(seconds, 1))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes the row of each test, and leaves out those of other rows where STUDYHALL_FAULTS names some ("F3,F14")."""
    marked = [(item, item.get_closest_marker("fault")) for item in items]
    of = Counter(marker.args[0] for _, marker in marked if marker)
    for item, marker in marked:
        if marker:
            item.user_properties.append(("fault", (*marker.args, of[marker.args[0]])))
    if wanted := os.environ.get("STUDYHALL_FAULTS"):
        left_out = [item for item, marker in marked if not marker or marker.args[0] not in wanted.split(",")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that gathers reports, which is the only one without pytest-xdist."""
    noted = dict(report.user_properties)
    if "fault" not in noted or not (report.when == "call" or report.failed):
        return
    row = _ROWS.setdefault(noted["fault"][0], _Row(*noted["fault"]))
    row.ran.add(report.nodeid)
    row.held = row.held and report.passed
    if report.when == "call" and "recovered_s" in noted:
        row.recovered_s.append(noted["recovered_s"])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Rows whose every test was run replace those of the file; the others stay, each with its own date and commit."""
    target = os.environ.get("STUDYHALL_FAULTS_TABLE")
    if not target or hasattr(session.config, "workerinput"):  # a process of pytest-xdist
        return
    path, about = Path(target), environment()
    old = {row["id"]: row for row in json.loads(path.read_text())["figures"]} if path.is_file() else {}
    new = {
        row.id: {
            "id": row.id, "promise": row.promise, "tests": row.of, "held": row.held, "recovered_s": sorted(row.recovered_s),
            "date": about["date"], "commit": about["commit"],
        }
        for row in _ROWS.values()
        if len(row.ran) == row.of
    }  # fmt: skip
    rows = sorted((old | new).values(), key=lambda row: int(row["id"][1:]))
    about["minutes"] = round((time.monotonic() - _STARTED) / 60, 1)
    result = {"name": "faults", "figures": rows, "holds": all(row["held"] for row in rows), "environment": about}
    path.write_text(json.dumps(result, indent=1) + "\n")

"""Runs cells in process groups, and goes on after a group that an unforeseen error ends."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.helpers.groups import Groups
from tests.parity.cells import Cell

_AT_ONCE = 80
"""Cells that one group computes: what a process gathers in memory goes with it."""
_START_S, _CELL_S = 120, 30
"""A group's limit: a cell takes a second, a hang as long as its whole group."""


def run_cells(groups: Groups, out: Path, cells: list[Cell], note: Callable[[dict[str, Any]], None]) -> None:
    """Calls note(cell's and verdict's values) for each cell when its group ends; `out` keeps models and oracles."""
    wanted = dict.fromkeys(f"{cell.family} {cell.trained} {cell.rows}" for cell in cells)
    groups.call("tests.parity.oracle", out, 2, *wanted, limit_s=_START_S + _CELL_S * len(wanted))
    for workers in (1, 2):
        members = [cell for cell in cells if cell.workers == workers]
        for first in range(0, len(members), _AT_ONCE):
            _run_group(groups, out, members[first : first + _AT_ONCE], note)


def _run_group(groups: Groups, out: Path, cells: list[Cell], note: Callable[[dict[str, Any]], None]) -> None:
    while cells:
        todo = out / f"{cells[0].family}-x{cells[0].workers}.json"
        lines, failed = todo.with_suffix(".lines"), todo.with_suffix(".error")
        for path in (lines, failed):
            path.unlink(missing_ok=True)
        todo.write_text(json.dumps([asdict(cell) for cell in cells]))
        told = ""
        try:
            groups.call("tests.parity.product", out, cells[0].workers, str(todo), limit_s=_START_S + _CELL_S * len(cells))
        except AssertionError as ended:
            told = failed.read_text() if failed.exists() else f"the group ended: {ended.args[0][0]}"
        found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        if len(found) < len(cells):
            found.append({**asdict(cells[len(found)]), "verdict": "error", "why": told, "figures": {}, "told": {}, "seconds": 0})
        for line in found:
            note(line)
        cells = cells[len(found) :]

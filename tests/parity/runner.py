"""Runs cells in process groups, family by family, and goes on after a group that an unforeseen error ends."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.groups import Groups
from tests.parity.cells import Cell

_AT_ONCE = 64
"""Cells that one group computes: what a process gathers in memory goes with it."""
_START_S, _CELL_S = 120, 60
"""A group's limit. A cell takes a second; only a hang takes a minute a cell."""


def run_cells(groups: Groups, out: Path, cells: list[Cell], note: Callable[[dict[str, Any]], None]) -> None:
    """Calls note(cell's and verdict's values) for each cell as its group ends; `out` keeps models and oracles."""
    for family, members in groupby(sorted(cells, key=lambda cell: cell.family), lambda cell: cell.family):
        of_family = list(members)
        wanted = dict.fromkeys(f"{cell.trained} {cell.rows}" for cell in of_family)
        groups.call("tests.parity.oracle", out, 1, family, *wanted, limit_s=_START_S + _CELL_S * len(wanted))
        for workers in (1, 2):
            for part in _parts([cell for cell in of_family if cell.workers == workers]):
                _run_part(groups, out, part, note)


def _parts(cells: list[Cell]) -> Iterator[list[Cell]]:
    yield from (cells[n : n + _AT_ONCE] for n in range(0, len(cells), _AT_ONCE))


def _run_part(groups: Groups, out: Path, cells: list[Cell], note: Callable[[dict[str, Any]], None]) -> None:
    while cells:
        todo = out / f"{cells[0].family}-x{cells[0].workers}.json"
        lines, failed = todo.with_suffix(".lines"), todo.with_suffix(".error")
        for path in (lines, failed):
            path.unlink(missing_ok=True)
        todo.write_text(json.dumps([asdict(cell) for cell in cells]))
        told = ""
        try:
            groups.call("tests.parity.product", out / "", cells[0].workers, str(todo), limit_s=_START_S + _CELL_S * len(cells))
        except AssertionError as ended:
            told = failed.read_text() if failed.exists() else f"the group ended: {ended.args[0][0]}"
        found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        if len(found) < len(cells):
            found.append({**asdict(cells[len(found)]), "verdict": "error", "why": told, "figures": {}, "told": {}, "seconds": 0})
        for line in found:
            note(line)
        cells = cells[len(found) :]

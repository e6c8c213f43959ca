"""The parity matrix: python -m tests.parity [--family llama,mamba] [--zero 3] [--precision bf16] [--adapter lora,all] [--rows long] [--workers 2]

Goes on where an earlier run of the same sources ended. After the whole matrix: benchmarks/results/parity.json, and the table in docs/models.md.
Exit code 1 where a cell is DIFFERENT or ends in an error.
"""

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from benchmarks.result_file import FOLDER, environment
from console import Command, UserError, door, progress, say
from tests.conftest import ROOT
from tests.helpers.groups import Groups
from tests.parity import table
from tests.parity.cells import Cell, whole_matrix
from tests.parity.runner import run_cells
from tests.parity.verdict import against_other_stages

Line = dict[str, Any]
PARTIAL = FOLDER / "parity.part.jsonl"
FACTORS = ("family", "trained", "rows", "zero", "precision", "workers")
SLOW_FIRST = ("mamba", "falcon-h1", "deepseek-v3")


def sources() -> str:
    """What stands for the code: all that Python files hold, committed or not, and the instructions that are used."""
    git = (["ls-files", "--stage", "--", "*.py"], ["diff", "--", "*.py"])
    parts = (subprocess.run(["git", *command], capture_output=True, cwd=ROOT, check=True).stdout for command in git)
    instructions = repr([os.environ.get(name) for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")])
    return hashlib.sha256(b"".join(parts) + instructions.encode()).hexdigest()[:12]


def key(line: Line) -> Cell:
    return Cell(**{factor: line[factor] for factor in FACTORS})


def earlier(now: str) -> dict[Cell, Line]:
    lines = [json.loads(line) for line in PARTIAL.read_text().splitlines()] if PARTIAL.exists() else []
    return {key(line): line for line in lines if line["sources"] == now}


def run(cells: list[Cell], processes: int, now: str) -> dict[Cell, Line]:
    """Every cell's line; those of an earlier run are taken as they are."""
    done = earlier(now)
    found = {cell: done[cell] for cell in cells if cell in done}
    todo: Queue[list[Cell]] = Queue()
    left = [cell for cell in cells if cell not in found]
    families = sorted({cell.family for cell in left}, key=lambda name: (name not in SLOW_FIRST, name))
    for family in families:
        todo.put([cell for cell in left if cell.family == family])
    lock = threading.Lock()
    with tempfile.TemporaryDirectory(prefix="parity") as folder, progress() as bar, PARTIAL.open("a") as file:
        task = bar.add_task("cells", total=len(cells), completed=len(found))

        def note(line: Line) -> None:
            with lock:
                found[key(line)] = line
                file.write(json.dumps({**line, "sources": now}) + "\n")
                file.flush()
                bad = sum(line["verdict"] in ("DIFFERENT", "error") for line in found.values())
                bar.update(task, advance=1, note=f"{bad} bad; {line['family']}")

        servers = [Groups() for _ in range(processes)]
        threads = [threading.Thread(target=_work, args=(server, Path(folder), todo, note), daemon=True) for server in servers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # Ctrl-C too: what is done is in the file
            for server in servers:
                server.close()
    return found


def _work(groups: Groups, folder: Path, todo: "Queue[list[Cell]]", note: Callable[[Line], None]) -> None:
    try:
        while True:
            run_cells(groups, folder, todo.get_nowait(), note)
    except Empty:
        pass


def chosen(arguments: argparse.Namespace) -> list[Cell]:
    """UserError for a value that no cell has."""
    cells = whole_matrix()
    for factor in FACTORS:
        known = dict.fromkeys(str(getattr(cell, factor)) for cell in cells)
        wanted = (getattr(arguments, factor) or ",".join(known)).split(",")
        if strange := [value for value in wanted if value not in known]:
            raise UserError(f"--{factor}: {strange[0]!r} is none of {', '.join(known)}")
        cells = [cell for cell in cells if str(getattr(cell, factor)) in wanted]
    return cells


def main(argv: list[str] | None) -> int:
    parser = Command("python -m tests.parity", description=__doc__)
    for factor in FACTORS:
        also = ["--adapter"] if factor == "trained" else []
        parser.add_argument(f"--{factor}", *also, help="some of them, with commas between")
    parser.add_argument("--processes", type=int, default=2, help="groups at a time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    cells, started = chosen(arguments), time.monotonic()
    lines = against_other_stages(list(run(cells, arguments.processes, sources()).values()))
    bad = [line for line in lines if line["verdict"] in ("DIFFERENT", "error")]
    for line in bad:
        say(f"{line['verdict']}: {key(line).name}: {line['why']}")
    counts = dict(Counter(line["verdict"] for line in lines))
    say(f"{len(lines)} of {len(cells)} cells: {', '.join(f'{n} {verdict}' for verdict, n in sorted(counts.items()))}")
    if len(lines) == len(whole_matrix()):
        minutes = (
            max(time.monotonic() - started, sum(line["seconds"] for line in lines) / arguments.processes) / 60
        )  # the latter where it went on
        about = {**environment(), "minutes": round(minutes, 1)}
        table.write(
            {
                "name": "parity",
                "cells": len(lines),
                "verdicts": counts,
                "figures": table.rows(lines),
                "holds": not bad,
                "environment": about,
            }
        )
    return int(bool(bad) or len(lines) < len(cells))


if __name__ == "__main__":
    door(main)

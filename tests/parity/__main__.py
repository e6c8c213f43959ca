"""The parity matrix: python -m tests.parity [--family llama,mamba] [--zero 3] [--precision bf16] [--trained lora,dora] [--rows long] [--workers 2]

Goes on where an earlier run of the same sources ended. After the whole matrix: benchmarks/results/parity.json, and the table in docs/models.md.
Exit code 1 where a cell is DIFFERENT or ends in an error.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from benchmarks.result_file import FOLDER, environment
from console import progress, say
from tests.conftest import ROOT
from tests.groups import Groups
from tests.parity import table
from tests.parity.cells import Cell, whole_matrix
from tests.parity.runner import run_cells
from tests.parity.verdict import against_other_stages

PARTIAL = FOLDER / "parity.part.jsonl"
FACTORS = ("family", "trained", "rows", "zero", "precision", "workers")
SLOW_FIRST = ("mamba", "falcon-h1", "deepseek-v3")


def sources() -> str:
    """What stands for the code: the commit, and the changes on top of it."""
    commit, changes = (
        subprocess.run(["git", *command], capture_output=True, cwd=ROOT, check=True).stdout
        for command in (["rev-parse", "--short", "HEAD"], ["diff", "HEAD", "--", "*.py"])
    )
    return commit.decode().strip() + (f"+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")


def key(line: dict[str, Any]) -> Cell:
    return Cell(**{factor: line[factor] for factor in FACTORS})


def earlier(now: str) -> dict[Cell, dict[str, Any]]:
    lines = [json.loads(line) for line in PARTIAL.read_text().splitlines()] if PARTIAL.exists() else []
    return {key(line): line for line in lines if line["sources"] == now}


def run(cells: list[Cell], processes: int, now: str) -> dict[Cell, dict[str, Any]]:
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

        def note(line: dict[str, Any]) -> None:
            with lock:
                found[key(line)] = line
                file.write(json.dumps({**line, "sources": now}) + "\n")
                file.flush()
                bad = sum(line["verdict"] in ("DIFFERENT", "error") for line in found.values())
                bar.update(task, advance=1, note=f"{bad} bad; {line['family']}")

        def work() -> None:
            groups = Groups()
            try:
                while True:
                    run_cells(groups, Path(folder), todo.get_nowait(), note)
            except Empty:
                pass
            finally:
                groups.close()

        threads = [threading.Thread(target=work) for _ in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def chosen(arguments: argparse.Namespace) -> list[Cell]:
    wanted = {factor: str(value).split(",") for factor in FACTORS if (value := getattr(arguments, factor))}
    return [cell for cell in whole_matrix() if all(str(getattr(cell, factor)) in values for factor, values in wanted.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for factor in FACTORS:
        parser.add_argument(f"--{factor}", help="some of them, with commas between")
    parser.add_argument("--processes", type=int, default=2, help="groups at a time (default: %(default)s)")
    arguments = parser.parse_args()
    cells, now, started = chosen(arguments), sources(), time.monotonic()
    lines = against_other_stages(list(run(cells, arguments.processes, now).values()))
    bad = [line for line in lines if line["verdict"] in ("DIFFERENT", "error")]
    for line in bad:
        say(f"{line['verdict']}: {key(line).name}: {line['why']}")
    counts = dict(Counter(line["verdict"] for line in lines))
    say(f"{len(lines)} of {len(cells)} cells: {', '.join(f'{n} {verdict}' for verdict, n in sorted(counts.items()))}")
    if len(lines) == len(whole_matrix()):
        about = {**environment(), "minutes": round((time.monotonic() - started) / 60, 1)}
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
    sys.exit(bool(bad) or len(lines) < len(cells))


if __name__ == "__main__":
    main()

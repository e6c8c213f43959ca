"""Runs measurements and shows what all of them say: python -m benchmarks [NAME …] [--docs]

Without a name: the table of benchmarks/results/*.json, every row with its goal and verdict. With names: runs these, one after the other,
each in a process of its own (`python -m benchmarks.NAME` is the same), then shows their rows.
"""

import argparse
import subprocess
import sys

from benchmarks.result_file import FOLDER
from benchmarks.table import modules, rich_table, row, write_page
from console import RunError, UserError, door, out, say


def run(name: str) -> int:
    """Runs one in a process of its own: each wants its own threads, Ray and peak of memory."""
    say(f"── {name}")
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent.parent, stdout=subprocess.DEVNULL).returncode


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measurements to run; none: show what has been measured")
    parser.add_argument("--docs", action="store_true", help="draw the pictures (docs/pictures) and write the tables of docs/performance.md")
    arguments = parser.parse_args(argv)
    known = modules()
    for name in arguments.names:
        if name not in known:
            raise UserError(f"{name}: no such benchmark; known: {', '.join(known)}")
    failed = [name for name in arguments.names if run(name)]
    out.print(rich_table([row(name, known[name]) for name in arguments.names or known]))
    if arguments.docs:
        from benchmarks.plots import draw

        write_page()
        for path in draw(FOLDER):
            say(f"drawn: {path}")
    if failed:
        raise RunError(f"failed: {', '.join(failed)}; what they printed stands above")


if __name__ == "__main__":
    door(main)

"""Runs measurements and shows what all of them say: python -m benchmarks [NAME …] [--plots]

Without a name: the table of benchmarks/results/*.json, every row with its goal and verdict. With names: runs these, one after the other,
each in a process of its own (`python -m benchmarks.NAME` is the same), then shows their rows.
"""

import argparse
import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.result_file import FOLDER
from console import RunError, UserError, door, out, say

_NO_MEASUREMENT = {"__init__", "__main__", "result_file"}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    """First words of the module."""
    measured: str
    goal: str
    verdict: str
    made: str
    """Date and commit."""


def modules() -> dict[str, str]:
    """Name → docstring of every module that can be run and has a result file; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        if path.stem not in _NO_MEASUREMENT and f"python -m benchmarks.{path.stem}" in doc and f"results/{path.stem}.json" in doc:
            found[path.stem] = doc
    return found


def row(name: str, doc: str) -> Row:
    what = doc.split(": python -m")[0].split("?")[0].strip()
    path = FOLDER / f"{name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    goal = result.get("goal") or {}
    if not result or result.get("holds") is None:
        return Row(name, what, "not measured", _goal_text(goal) or _goal_of(doc), "–", "")
    environment = result.get("environment", {})
    verdict = ("holds" if result["holds"] else "missed") if goal else "no goal"
    made = " ".join(str(environment[key])[:10] for key in ("date", "commit") if key in environment)
    return Row(name, what, _measured(result, goal), _goal_text(goal), verdict, made)


def _measured(result: dict[str, Any], goal: dict[str, Any]) -> str:
    """The figures that the goal names, where it names them."""
    figures = result["figures"] if isinstance(result.get("figures"), dict) else {}
    known = {**figures, **{key: value for key, value in result.items() if not isinstance(value, (dict, list))}}
    named = [f"{key} {_short(known[key])}" for key in goal if key in known]
    return ", ".join(named) or str(result.get("headline", ""))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return str(len(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _goal_text(goal: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in goal.items())


def _goal_of(doc: str) -> str:
    """The sentence of a docstring that begins with "Goal"."""
    text = " ".join(doc.split())
    at = max(text.find("Goal: "), text.find("Goals: "))
    return text[at:].split(": ", 1)[1].split(". ")[0] if at >= 0 else ""


def table(rows: list[Row]) -> Table:
    shown = Table("benchmark", "measured", "goal", "verdict", "made", box=None, pad_edge=False)
    for line in rows:
        shown.add_row(line.name, line.measured, line.goal, line.verdict, line.made)
    return shown


def run(name: str) -> int:
    """Runs one in a process of its own: each wants its own threads, Ray and peak of memory."""
    say(f"── {name}")
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent.parent, stdout=subprocess.DEVNULL).returncode


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measurements to run; none: show what has been measured")
    parser.add_argument("--plots", action="store_true", help="draw the pictures of README.md and docs/performance.md anew (docs/pictures)")
    arguments = parser.parse_args(argv)
    known = modules()
    for name in arguments.names:
        if name not in known:
            raise UserError(f"{name}: no such benchmark; known: {', '.join(known)}")
    failed = [name for name in arguments.names if run(name)]
    out.print(table([row(name, known[name]) for name in arguments.names or known]))
    if arguments.plots:
        from benchmarks.plots import draw

        for path in draw(FOLDER):
            say(f"drawn: {path}")
    if failed:
        raise RunError(f"failed: {', '.join(failed)}; what they printed stands above")


if __name__ == "__main__":
    door(main)

"""What has been measured, in one table: benchmarks/results/*.json beside the goals that the modules name."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.result_file import FOLDER

PAGE = FOLDER.parent.parent / "docs" / "performance.md"
TWO_CORES = (
    "pack_fill", "pack_time", "pack_speed", "real_step", "step_shape", "tokenise", "stream", "resume_seek", "checkpoint_block", "loop_overhead",
    "launch", "exam", "reload", "search", "shared_prefix", "pit_effect", "wordings", "scale_load", "scale_export", "stage_memory",
)  # fmt: skip
ONE_GPU = ("gpu_135m", "gpu_1b", "gpu_3b", "gpu_8b", "gpu_offload", "gpu_pack", "gpu_mask", "gpu_stream")


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


# Where the goal's own words are no keys of the figures.
_HEADLINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "pack_fill": lambda f: ", ".join(f"{100 * w['fill']['ours']:.2f} %" for w in f["windows"].values())
    + f"; busiest {max(s['median'] for s in f['steps_of_256'].values() if s['full_rows_a_rank'] >= 2):.3f}",
    "pit_effect": lambda f: "pit - standard {mean} ({low} to {high})".format(**f["differences"]["pit - standard"]) + f", seeds {len(f['seeds'])}",
    "wordings": lambda f: "worst after one wording {worst[pit_1][mean]}, after eight {worst[pit_8][mean]}; as trained {trained[pit_8][mean]}".format(**f)
    + f", seeds {len(f['seeds'])}",
    "search": lambda f: "{regret_at_most_2:.1%} of replays, tokens {tokens_mean:.2f}".format(**f["schedulers"][f["chosen"]])
    + f", seeds {len(f['seeds'])}",
    "cost_model": lambda f: f"worst {max(s['worst'] for s in f['summary'].values()):.1%}",
    "retrieval": lambda f: f"{f['hit_at']['3']:.3f}",
}  # fmt: skip


def modules() -> dict[str, str]:
    """Name → docstring of every module that can be run and has a result file; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.rglob("*.py"), key=lambda path: path.name):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        if f"python -m benchmarks.{path.stem}" in doc and f"results/{path.stem}.json" in doc:
            found[path.stem] = doc
    return found


def row(name: str, doc: str, folder: Path = FOLDER) -> Row:
    """The line of one benchmark, "not measured" where there is no result."""
    what = re.split(r": python -m|\? python -m", doc)[0]
    path = folder / f"{name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    goal = result.get("goal") or {}
    if result.get("holds") is None:
        return Row(name, what, "not measured", _goal_text(goal) or _goal_of(doc), "–", "")
    environment = result.get("environment", {})
    verdict = ("holds" if result["holds"] else "missed") if goal else "no goal"
    made = " ".join(str(environment[key])[:10] for key in ("date", "commit") if key in environment)
    return Row(name, what, _measured(name, result, goal), _goal_text(goal), verdict, made)


def rich_table(rows: list[Row]) -> Table:
    shown = Table("benchmark", "measured", "goal", "verdict", "made", box=None, pad_edge=False)
    for line in rows:
        shown.add_row(line.name, line.measured, line.goal, line.verdict, line.made)
    return shown


def write_page(page: Path = PAGE) -> None:
    """Puts the tables into docs/performance.md, between their marks."""
    known, text = modules(), page.read_text()
    for mark, names in (("two cores", TWO_CORES), ("one GPU", ONE_GPU)):
        lines = ["| benchmark | what | measured | goal | verdict |", "|---|---|---|---|---|"]
        for line in (row(name, known[name]) for name in names):
            verdict = "**missed**" if line.verdict == "missed" else line.verdict
            lines.append(f"| `{line.name}` | {line.what} | {line.measured} | {line.goal} | {verdict} |")
        begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
        made = "\n".join([begin, *lines, end])
        text = re.sub(f"{begin}.*?{end}", lambda _, made=made: made, text, flags=re.DOTALL)  # type: ignore[misc]
    page.write_text(text)


def _measured(name: str, result: dict[str, Any], goal: dict[str, Any]) -> str:
    """The figures that the goal names, where it names them."""
    figures = result["figures"] if isinstance(result.get("figures"), dict) else {}
    if name in _HEADLINES:
        return _HEADLINES[name](figures)
    known = {**figures, **{key: value for key, value in result.items() if not isinstance(value, (dict, list))}}
    return ", ".join(f"{key} {_short(known[key])}" for key in goal if key in known)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{key} {_short(v)}" for key, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _goal_text(goal: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in goal.items())


def _goal_of(doc: str) -> str:
    """The sentence of a docstring that begins with "Goal"."""
    text = " ".join(doc.split())
    at = max(text.find("Goal: "), text.find("Goals: "))
    return text[at:].split(": ", 1)[1].split(". Writes")[0].split(". ")[0] if at >= 0 else ""

"""The pictures of README.md and docs/performance.md, drawn from benchmarks/results/*.json: python -m benchmarks --docs"""

import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
_INK, _OURS, _GOAL, _PEER = "#333333", "#2a6f97", "#c1121f", "#a9b4bc"

# (result, what is compared, the figure that says how many times better, the goal); figures that are shares of the peer are turned over.
TIMES = (
    ("pack_time", "packing, against TRL", "faster_1000", 10.0),
    ("pack_speed", "training on a mix, against HF Trainer", "mix_over_hf", 2.5),
    ("tokenise", "tokens from JSONL, against datasets.map", "less_cpu", 1.15),
    ("stream", "a batch, against plain Ray Data", "ratio", 1 / 0.5),
    ("checkpoint_block", "a save, against a synchronous one", "ratio", 1 / 0.1),
    ("resume_seek", "first row after a resume, against skipping", "faster", 50.0),
    ("exam", "questions a second, against transformers", "ratio", 4.0),
    ("reload", "a checkpoint's first answer, against a new engine", "ratio", 20.0),
)
_SHARES = {"stream", "checkpoint_block"}


def draw(results: Path) -> list[Path]:
    """Draws what has been measured; returns the files."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    made = []
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    rows = [(text, times, goal) for name, text, key, goal in TIMES if (times := _times(found.get(name), name, key))]
    if rows:
        made.append(_save(times_figure(rows), "times.svg"))
    if found.get("pack_fill", {}).get("holds") is not None:
        made.append(_save(fill_figure(found["pack_fill"]["figures"]["windows"]), "packing.svg"))
    return made


def _times(result: dict[str, Any] | None, name: str, key: str) -> float | None:
    if not result or result.get("holds") is None:
        return None
    value = result["figures"].get(key, result.get(key))
    return None if not value else 1 / value if name in _SHARES else float(value)


def times_figure(rows: list[tuple[str, float, float]]) -> Figure:
    """A bar per measurement on a logarithmic axis, with its goal as a mark."""
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, times, goal) in enumerate(rows):
        axes.barh(place, times, color=_OURS, height=0.6)
        axes.plot([goal, goal], [place - 0.4, place + 0.4], color=_GOAL, lw=2.5, label="goal" if place == 0 else None)
        axes.annotate(f"{times:.3g}×", (max(times, goal), place), (6, 0), textcoords="offset points", va="center", color=_INK)
    axes.set_yticks(range(len(rows)), [text for text, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1, 3 * max(max(times, goal) for _, times, goal in rows))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel("times as fast as the peer in the same run (logarithmic)")
    _quiet(axes)
    axes.legend(frameon=False, loc="upper right")
    return figure


def fill_figure(windows: dict[str, Any]) -> Figure:
    """How much of the rows stays empty, ours against TRL and next-fit."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    kinds = {
        "next_fit": ("next-fit", "#d5dbdf"),
        "trl": ("TRL bfd_split", _PEER),
        "ours": ("Studyhall", _OURS),
        "least": ("possible", _INK),
    }
    for n, (kind, (label, colour)) in enumerate(kinds.items()):
        empty = [max(100 * (1 - window["fill"][kind]), 0.005) for window in windows.values()]
        axes.bar([place + 0.2 * (n - 1.5) for place in range(len(empty))], empty, width=0.19, color=colour, label=label)
    axes.set_xticks(range(len(windows)), [name.replace(", ", ",\n") for name in windows])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_ylabel("of the rows is empty")
    _quiet(axes)
    axes.legend(frameon=False, ncols=4, loc="upper right")
    axes.set_ylim(top=60)
    return figure


def _quiet(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK)


def _save(figure: Figure, name: str) -> Path:
    path = PICTURES / name
    with rc_context({"svg.hashsalt": "studyhall"}):  # the same figures give the same file
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
    return path

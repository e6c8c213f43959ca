"""report.html: one file that needs nothing else. This module chooses what is shown; report.html.jinja says how it looks.

Everything that people or models wrote is escaped by the template; only the drawings of evaluation/report/plots.py are markup.
Blocks that report.json does not have are left out.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from evaluation.report import plots
from evaluation.report.blocks import blocks
from evaluation.report.render import HOW_TO_READ, MISSING, _points, _range, baseline_lines, summary, table_cells, use_lines


def page(report: dict[str, Any]) -> str:
    """The whole document."""
    colours = {name: n for n, name in enumerate(report["arms"])}
    heads, rows = table_cells(report)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = words
    return environment.get_template("report.html.jinja").render(
        report=report,
        colours=colours,
        summary=summary(report),
        table_={"heads": heads, "rows": rows},
        baselines=baseline_lines(report),
        missing={name: arm["reason"] for name, arm in report["arms"].items() if arm["status"] == MISSING},
        pairs=_pairs(report),
        scores=_score_plots(report, colours),
        modes=_mode_plots(report),
        learning=_learning_plots(report, colours),
        forgetting=_forgetting_plots(report, colours),
        only_right=_only_right(report),
        samples=[{**s, "said": {n: {"text": a["answer"], "right": a["em"]} for n, a in s["answers"].items()}} for s in report["samples"]],
        curricula=_stage_plot(report),
        cost=_cost(report),
        how_to_read=[line.removeprefix("- ") for line in re.split(r"\n(?=- )", HOW_TO_READ.strip())],
        use=use_lines(report),
        made_with=_made_with(report),
        plan_hashes=[[s["label"], s["plan_hash"]] for s in (report.get("stages") or {}).values()],
        **blocks(report),
    )


def words(text: str) -> Markup:
    """Escaped text with `code`, **strong** and *stressed* set as such."""
    safe = " ".join(str(escape(text)).split())
    for mark, tag in ((r"`([^`]+)`", "code"), (r"\*\*(.+?)\*\*", "strong"), (r"\*(.+?)\*", "em")):
        safe = re.sub(mark, rf"<{tag}>\1</{tag}>", safe)
    return Markup(safe)


def _scored(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: arm for name, arm in report["arms"].items() if arm["status"] != MISSING}


def _score_plots(report: dict[str, Any], colours: Mapping[str, int]) -> list[plots.Plot]:
    drawn = []
    if scored := _scored(report):
        ems = {name: arm["sets"]["test"]["em"] for name, arm in scored.items()}
        drawn.append(plots.intervals("Exact match on the exam", ems, colours))
    if to := report["differences"]["to"]:
        reference = report["differences"]["compare_to"]
        drawn.append(plots.intervals(f"Paired difference to {reference}", to, colours, "points", zero=True))
    return drawn


def _mode_plots(report: dict[str, Any]) -> list[plots.Plot]:
    """Retrieval against training: how each arm answers closed book, with retrieved passages, with its own document open."""
    groups = {
        name: {mode: scores["em"] for mode, scores in arm["modes"].items() if scores and scores.get("em")}
        for name, arm in _scored(report).items()
        if arm.get("modes")
    }
    groups = {name: modes for name, modes in groups.items() if modes}
    drawn = [plots.grouped("Exact match by answer mode", groups)] if any(set(modes) - {"closed"} for modes in groups.values()) else []
    colours = {name: n for n, name in enumerate(report["arms"])}
    unsure = {
        name: [(100 * point["retrieved"], 100 * point["em"]) for point in found["curve"]]
        for name, found in (report.get("adaptive") or {}).items()
    }
    if unsure:
        drawn.append(plots.against("Looking up only where unsure", unsure, colours, "questions looked up, %", "test EM, %", marked=False))
    return drawn


def _learning_plots(report: dict[str, Any], colours: Mapping[str, int]) -> list[plots.Plot]:
    """The paper's Figure 5 in our words: scores at stage ends, then the curves of training."""
    drawn = []
    for what, score, key, unit in (
        ("Exact match against steps", "em", "steps", "test EM, %"),
        ("Exact match against tokens", "em", "tokens", "test EM, %"),
        ("Document loss against steps", "document_loss", "steps", "nats a token of the test documents"),
        ("Older questions against steps", "replay_em", "steps", "replay EM, %"),
    ):
        lines = {name: points for name in _scored(report) if (points := _ends(report, name, score, key))}
        if any(len(points) > 1 for points in lines.values()):
            drawn.append(plots.against(what, lines, colours, f"{key} after the base", unit))
    stages = report.get("stages") or {}
    for what, key, y in (
        ("Loss", "loss", "training loss"),
        ("Gradient", "grad_norm", "norm before clipping"),
        ("Learning rate", "rate", "at each step"),
    ):
        lines_of = _curves(stages, report.get("curricula") or {}, key)
        if lines_of:
            drawn.append(plots.curves(what, lines_of, colours, y, log=key != "rate"))
    return drawn


def _ends(report: dict[str, Any], name: str, score: str, key: str) -> list[tuple[float, float]]:
    """(steps or tokens, score) where it is known: at stage ends, else the base's and the arm's own at the end. Shares times 100."""
    arms = _scored(report)
    known = [(s.get(key), _score(s, score)) for s in (report.get("learning") or {}).get(name, [])]
    if not any(value is not None for _, value in known):
        known = [(arms[name][key] or 0, _score(arms[name], score))] if name != "base" else []
    if "base" in arms and not any(x == 0 for x, _ in known):
        known.insert(0, (0, _score(arms["base"], score)))
    return [(float(x), value) for x, value in known if x is not None and value is not None]


def _score(of: Mapping[str, Any], score: str) -> float | None:
    """`em`, `replay_em` (both times 100) or `document_loss` of an arm, or of an entry of the block `learning`."""
    if score == "document_loss":
        return None if of.get(score) is None else _mean(of[score])
    sets = of.get("sets") or {}
    value = sets.get("replay" if score == "replay_em" else "test", {}).get("em") if sets else of.get(score)
    return None if value is None else 100 * _mean(value)


def _mean(value: Any) -> float:
    return float(value["mean"] if isinstance(value, Mapping) else value)


def _curves(stages: Mapping[str, Any], curricula: Mapping[str, list[str]], key: str) -> dict[str, list[list[tuple[float, float]]]]:
    """Of each arm its pieces of (step over all stages, value), a piece a stage. What arms share stands with the first of them.

    Without values that are not finite, or that a logarithmic axis cannot show.
    """
    drawn: set[tuple[str, ...]] = set()
    lines: dict[str, list[list[tuple[float, float]]]] = {}
    for name, keys in curricula.items():
        before = 0
        for depth, stage in enumerate(stages[k] for k in keys if k in stages):
            way = tuple(keys[: depth + 1])
            values = [(before + line["step"], line[key]) for line in stage["curve"] if isinstance(line[key], int | float)]
            piece = [(x, v) for x, v in values if 0 < v < float("inf")]
            if piece and way not in drawn:
                lines.setdefault(name, []).append(piece)
            drawn.add(way)
            before += stage["steps"] or 0
    return lines


def _forgetting_plots(report: dict[str, Any], colours: Mapping[str, int]) -> list[plots.Plot]:
    drawn = _frontier(report, colours)
    replay = {
        name: {kind: arm["sets"][kind]["em"] for kind in ("train", "replay") if kind in arm["sets"]}
        for name, arm in _scored(report).items()
    }
    if any(replay.values()):
        drawn.append(plots.grouped("Practised and older questions", {n: kinds for n, kinds in replay.items() if kinds}))
    retained = (report.get("retention") or {}).get("arms") or {}
    retained = {name: {"retention": em} for name, arm in retained.items() if isinstance(em := arm.get("em"), Mapping)}
    if retained:
        drawn.append(plots.grouped("Retention exam", retained))
    tasks = ((report.get("benchmarks") or {}).get("tasks")) or {}
    groups = {task: {n: s for n, s in block["arms"].items() if s.get("mean") is not None} for task, block in tasks.items()}
    if groups := {task: bars for task, bars in groups.items() if bars}:
        drawn.append(plots.grouped("General benchmarks", {task.replace(" ", "\n", 1): bars for task, bars in groups.items()}, colours))
    return drawn


def _frontier(report: dict[str, Any], colours: Mapping[str, int]) -> list[plots.Plot]:
    """What was learnt against what is still known of before: replay questions, or the retention exam where there are none."""
    scored = _scored(report)
    retained = (report.get("retention") or {}).get("arms") or {}
    older = {
        "replay EM, %": {name: arm["sets"]["replay"]["em"] for name, arm in scored.items() if "replay" in arm["sets"]},
        "retention EM, %": {name: retained[name]["em"] for name in scored if isinstance((retained.get(name) or {}).get("em"), Mapping)},
    }
    for x, old in older.items():
        if len(old) > 1:
            values = {name: (old[name], scored[name]["sets"]["test"]["em"]) for name in old}
            return [plots.frontier("New against old", values, colours, x, "test EM, %")]
    return []


def _stage_plot(report: dict[str, Any]) -> plots.Plot | None:
    """Boxes from left to right: what is shared is drawn once."""
    stages, curricula = report.get("stages") or {}, report.get("curricula") or {}
    boxes: list[tuple[int, float, str, int | None]] = []
    numbers: dict[tuple[str, ...], int] = {}
    leaves = [(name, keys) for name, keys in curricula.items() if keys and all(key in stages for key in keys)]
    ways = [tuple(keys) for _, keys in leaves]
    row = 0
    for name, keys in leaves:
        inner = any(way[: len(keys)] == tuple(keys) and len(way) > len(keys) for way in ways)
        for depth in range(len(keys)):
            way = tuple(keys[: depth + 1])
            if way in numbers:
                continue
            stage = stages[keys[depth]]
            what = stage["label"].partition(": ")[2].replace("_", " ")
            ends = " · ".join(arm for arm, own in leaves if tuple(own) == way)
            text = "\n".join(filter(None, [ends, what.replace(" + ", " +\n"), f"{stage['steps']:,} steps at {stage['rate']:g}"]))
            numbers[way] = len(boxes)
            boxes.append((depth, row, text, numbers.get(way[:-1])))
        row += 0 if inner and name == "base" else 1
    if not boxes:
        return None
    for number in reversed(range(len(boxes))):  # a parent stands in the middle of its children
        if below := [row for _, row, _, parent in boxes if parent == number]:
            depth, _, text, parent = boxes[number]
            boxes[number] = (depth, (min(below) + max(below)) / 2, text, parent)
    depths = max(b[0] for b in boxes) + 1
    return plots.stage_tree("Which curricula share which stages", boxes, depths, max(1, row))


def _cost(report: dict[str, Any]) -> dict[str, Any]:
    """What training and exam took."""
    rows = []
    for name, arm in report["arms"].items():
        tokens, seconds, exam = arm.get("tokens"), arm.get("seconds"), arm.get("exam_seconds")
        speed = f"{tokens / seconds:,.0f}" if tokens and seconds else ""
        cells = ["" if value is None else f"{value:,.0f}" for value in (arm.get("steps"), tokens, seconds)]
        rows.append([name, *cells, speed, "" if exam is None else f"{exam:,.1f}"])
    return {"heads": ["arm", "steps", "tokens", "seconds", "tokens/s", "exam seconds"], "rows": rows}


def _only_right(report: dict[str, Any]) -> dict[str, Any]:
    found = {name: block for name, block in (report.get("only_right") or {}).items() if name in report["arms"]}
    return {
        name: {
            "count": block["count"],
            "examples": [
                {**e, "said": {n: {"text": text, "right": n == name} for n, text in e["answers"].items()}} for e in block["examples"]
            ],
        }
        for name, block in found.items()
    }


def _made_with(report: dict[str, Any]) -> list[tuple[str, str]]:
    stages = list((report.get("stages") or {}).values())

    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(s[key]) for s in stages if s.get(key) is not None))

    dtypes = ", ".join(dict.fromkeys(str(a["dtype"]) for a in _scored(report).values() if a.get("dtype")))
    facts = [
        ("seed", str(report["seed"])),
        ("workers", all_of("world_size")),
        ("hosts", all_of("hosts")),
        ("devices", all_of("devices")),
        ("ZeRO stage", all_of("zero_stage")),
        ("training precision", all_of("precision")),
        ("exam precision", dtypes),
        ("attention", all_of("attention")),
        ("exam", report["exam"]["fingerprint"]),
        *((name, version or "") for name, version in report["versions"].items()),
    ]
    return [(name, value) for name, value in facts if value]


def _pairs(report: dict[str, Any]) -> dict[str, Any]:
    pairs = report["differences"]["pairs"]
    rows = [
        [ours, *(f"{_points(d[other]['mean'])} ({_range(d[other])})" if other in d else "" for other in pairs)] for ours, d in pairs.items()
    ]
    return {"heads": ["", *pairs], "rows": rows} if len(pairs) > 1 else {}

"""report.html of a search: one file that needs nothing else, in the looks of the exam's report."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import evaluation.report.page
from evaluation.report import plots
from tune.report import render
from tune.report.render import rows_of

_MOST_LINES = 7


def page(report: dict[str, Any]) -> str:
    """The whole document."""
    folders = [Path(__file__).parent, Path(evaluation.report.page.__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = evaluation.report.page.words
    return environment.get_template("search.html.jinja").render(
        report=report,
        colours={},
        summary=render.summary(report),
        findings=render.findings(report),
        trials=render.trials_table(report),
        plots=[plot for plot in (_surface(report), _rungs(report), _importances(report)) if plot],
        surface_caption=render.surface_caption(report) if report["surface"] else "",
        signals=render.signal_table(report) if any(report["signals"].values()) else None,
        signals_explained=render.SIGNALS,
        cost=render.cost_table(report),
        how_to_read=render.HOW_TO_READ,
    )


def _y(report: dict[str, Any]) -> str:
    return "nats a token" if report["metric"] == "document_loss" else f"validation {report['metric']}, %"


def _scale(report: dict[str, Any]) -> float:
    return 1.0 if report["metric"] == "document_loss" else 100.0


def _surface(report: dict[str, Any]) -> plots.Plot | None:
    """The paper's Figure 5: score against epochs, a line for each rate."""
    surface = report["surface"]
    if not surface:
        return None
    names, scale = report["names"], _scale(report)
    by = names[surface["by"]] if surface["by"] else ""
    lines = {f"{by} {name}".strip(): [(x, scale * mean) for x, mean, _, _ in points] for name, points in surface["lines"].items()}
    colours = {name: n + 1 for n, name in enumerate(lines)}
    return plots.against("Response surface", lines, colours, names[surface["x"]], _y(report))


def _rungs(report: dict[str, Any]) -> plots.Plot | None:
    """Scores at the rungs of those that came furthest, the best of them first."""
    scale, sign = _scale(report), 1 if report["direction"] == "max" else -1
    seen = [row for row in rows_of(report) if len(row.rungs) > 1]
    seen.sort(key=lambda row: (-row.rungs[-1].share, -sign * row.rungs[-1].score["mean"]))
    lines = {row.id: [(100 * rung.share, scale * rung.score["mean"]) for rung in row.rungs] for row in seen[:_MOST_LINES]}
    if not lines:
        return None
    colours = {id: n + 1 for n, id in enumerate(lines)}
    return plots.against("The best trials on their way", lines, colours, "share of the trial's own schedule, %", _y(report))


def _importances(report: dict[str, Any]) -> plots.Plot | None:
    groups = {report["names"][path]: {"explains": {"mean": share}} for path, share in report["importances"].items()}
    return plots.grouped("What mattered", groups, None, "share of the spread of scores, %") if groups else None

"""report.json of a search in words and tables: report.md, and the texts of report.html."""

from typing import Any

from tune.config import SearchConfig
from tune.deciding.ledger import Row, Rung
from tune.report.show import metric_text, trial_table, unit

Table = tuple[list[str], list[list[str]]]

HOW_TO_READ = [
    "Trials are compared by the exam on questions that no trial was trained on and that the final test does not ask; intervals hold 95 % and "
    "resample documents.",
    "The best of many trials looks better on these questions than it is, because it was chosen by them. The number to quote is the test's.",
    "A rung is a share of a trial's own schedule: a cosine over more epochs is not behind at the same step, it is earlier.",
    "A trial that was stopped at a rung is shown with its score there; its end is not known.",
    "Seconds and tokens are what a trial really trained: what several share is counted with the first that trained it.",
]


def rows_of(report: dict[str, Any]) -> list[Row]:
    return [Row(**{**row, "rungs": [Rung(**rung) for rung in row["rungs"]]}) for row in report["trials"]]


def search_of(report: dict[str, Any]) -> SearchConfig:
    return SearchConfig.model_validate(report["search"])


def summary(report: dict[str, Any]) -> str:
    """One or two sentences: what won, by how much it is known, and what it scores on questions that chose nothing."""
    search, winner = search_of(report), report["winner"]
    if winner is None:
        return "No trial came to its end without being refused: there is no winner."
    values = ", ".join(
        f"{report['names'][path]} {value:.3g}" if isinstance(value, float) else f"{report['names'][path]} {value}"
        for path, value in winner["values"].items()
    )
    said = f"`{winner['id']}` wins ({values}): {search.metric} {metric_text(search, winner['validation'])} {unit(search)} on the questions to choose by"
    if winner["test"]:
        em = winner["test"]["test"]["em"]
        said += f", exact match {100 * em['mean']:.1f} % ({100 * em['low']:.0f}–{100 * em['high']:.0f}) on the {winner['test']['test']['n']:,} test questions"
        if report["base_test"]:
            said += f"; the base has {100 * report['base_test']['test']['em']['mean']:.1f} %"
    said += "."
    if count := len(report["tied"]):
        said += f" {count} other trial{'s' if count > 1 else ''} scored within its interval: other questions may have put {'them' if count > 1 else 'it'} first."
    return said


def findings(report: dict[str, Any]) -> list[str]:
    """What a reader must know before the table."""
    found = []
    if report["ended"]:
        found.append(f"The search ended before it was through: {report['ended']}.")
    if (surface := report["surface"]) and report["winner"]:
        for path in (surface["x"], surface["by"]):
            edge = path and _at_edge(report, path)
            if edge:
                found.append(f"The winner has the {edge} {report['names'][path]} that was tried: better ones may lie beyond.")
    return found


def _at_edge(report: dict[str, Any], path: str) -> str | None:
    tried = [row["values"][path] for row in report["trials"] if path in row["values"]]
    value = report["winner"]["values"].get(path)
    if len(set(tried)) < 3 or value is None:
        return None
    return "largest" if value == max(tried) else "smallest" if value == min(tried) else None


def trials_table(report: dict[str, Any]) -> Table:
    return trial_table(search_of(report), rows_of(report))


def cost_table(report: dict[str, Any]) -> Table:
    price = search_of(report).price_per_gpu_hour
    heads = ["trial", "steps", "tokens", "training s", "exams s", "GPU-hours", *(["cost"] if price else [])]
    lines = []
    for row in [*report["trials"], {**report["totals"], "id": "all"}]:
        cells = [
            f"{row['steps']:,}",
            f"{row['tokens']:,}",
            f"{row['train_seconds']:,.1f}",
            f"{row['exam_seconds']:,.1f}",
            f"{row['gpu_hours']:.2f}",
        ]
        lines.append([row["id"], *cells, *([f"{row['gpu_hours'] * price:,.2f}"] if price else [])])
    return heads, lines


def importance_table(report: dict[str, Any]) -> Table:
    return ["value", "explains"], [[report["names"][path], f"{100 * share:.0f} %"] for path, share in report["importances"].items()]


def signal_table(report: dict[str, Any]) -> Table:
    heads = ["early signal", "trials", "agrees with the end", "would have stopped the winner", "would have stopped"]
    lines = []
    for name, found in report["signals"].items():
        if found:
            agreement = "" if found["agreement"] is None else f"{found['agreement']:+.2f}"
            lines.append(
                [
                    name,
                    str(found["trials"]),
                    agreement,
                    f"{100 * found['winner_stopped']:.0f} % of orders",
                    f"{100 * found['stopped']:.0f} % of trials",
                ]
            )
    return heads, lines


def surface_caption(report: dict[str, Any]) -> str:
    surface = report["surface"]
    names = report["names"]
    more = f"; the best over {', '.join(names[path] for path in surface['over'])}" if surface["over"] else ""
    by = f", a line for each {names[surface['by']]}" if surface["by"] else ""
    where = (
        "at the end of each trial's schedule"
        if surface["share"] == 1
        else f"after {100 * surface['share']:g} % of each trial's own schedule"
    )
    return f"{report['metric']} against {names[surface['x']]}{by}{more}, {where}."


def markdown(report: dict[str, Any]) -> str:
    """report.md."""
    parts = [f"# {report['experiment']}: search", report["about"], summary(report), *findings(report)]
    parts += ["## Trials", _table(*trials_table(report))]
    if surface := report["surface"]:
        scale = 1 if report["metric"] == "document_loss" else 100
        xs = sorted({point[0] for points in surface["lines"].values() for point in points})
        heads = [report["names"][surface["by"]] if surface["by"] else "", *(f"{report['names'][surface['x']]} {x:g}" for x in xs)]
        at = {name: {point[0]: point[1] for point in points} for name, points in surface["lines"].items()}
        lines = [[name, *(f"{scale * points[x]:.1f}" if x in points else "" for x in xs)] for name, points in at.items()]
        parts += ["## Response surface", surface_caption(report), _table(heads, lines)]
    if report["importances"]:
        parts += [
            "## What mattered",
            "Share of the spread of scores that each value explains (functional ANOVA, the scores of the response surface).",
            _table(*importance_table(report)),
        ]
    if any(report["signals"].values()):
        parts += ["## Early signals", SIGNALS, _table(*signal_table(report))]
    parts += ["## Cost", _table(*cost_table(report))]
    parts += ["## How to read", *(f"- {line}" for line in HOW_TO_READ)]
    return "\n\n".join(part for part in parts if part).replace("\n\n- ", "\n- ") + "\n"


SIGNALS = (
    "Means over the steps before the first rung, of trials that came to their end. Agreement: rank correlation with what arXiv 2412.13337 says "
    "(lower gradient norm, higher early loss: better); +1 as it says, −1 the opposite. The rule stops a trial in the bad quarter of those before it."
)


def _table(heads: list[str], lines: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + " --- |" * len(heads), *map(line, lines)])

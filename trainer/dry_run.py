"""What an experiment would train, told without training: stages, steps, tokens, coverage, plan hash."""

from typing import Any

from rich.table import Table

from data.arms import compile_arms
from data.config import DataConfig, Stage
from data.lengths import count_lengths
from data.plan_report import arms_report, read_records
from trainer.config import ModelConfig


def dry_run(data: DataConfig, model: ModelConfig, arms: dict[str, list[Stage]], seed: int) -> dict[str, Any]:
    """Plans of all arms as plain values. Needs no GPU and no hub; without data it plans from the declared counts."""
    catalogue, _, origin = read_records(data, seed)
    lengths = count_lengths(catalogue, model.name, model.revision, model.tiny.vocab_size if model.tiny else None)
    plans = compile_arms(arms, catalogue, seed, lengths.of)
    return {"records": origin, "tokens": lengths.note, "arms": arms_report(arms, plans, catalogue, lengths)}


def table_of(report: dict[str, Any]) -> Table:
    """The report for people; an item count such as "1,720 × 3" reads "1,720 items, each three times"."""
    table = Table(title=f"{report['records']}; tokens: {report['tokens']}", title_justify="left")
    for column, justify in (("arm", "left"), ("stage", "left"), ("order", "left"), ("rate", "right"), ("steps", "right"), ("tokens", "right"), ("coverage", "left"), ("plan", "left")):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for arm, stages in report["arms"].items():
        for n, stage in enumerate(stages):
            table.add_row(
                arm if n == 0 else "",
                f"{n + 1}. {' + '.join(stage['mix'])}",
                stage["order"],
                f"{stage['rate']:g}",
                f"{stage['steps']:,}",
                f"{stage['tokens']:,}" if stage["tokens"] is not None else "?",
                ", ".join(_times(kind, c) for kind, c in stage["coverage"].items()),
                stage["plan_hash"][:12],
            )
    return table


def _times(kind: str, c: dict[str, int]) -> str:
    times = f"{c['least']}" if c["least"] == c["most"] else f"{c['least']} to {c['most']}"
    return f"{c['items']:,} of {c['of']:,} {kind} × {times}"

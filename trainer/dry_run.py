"""What an experiment would train, told without training: stages, steps, tokens, coverage, plan hash."""

from typing import Any

from rich.table import Table

from console import UserError
from data.catalogue import Catalogue, catalogue_of, declared_catalogue
from data.config import DataConfig, Stage
from data.load import load_corpus
from data.plan import coverage
from data.tokens import Encoder, load_tokenizer
from trainer.config import ModelConfig
from trainer.prepare import compile_arms


def dry_run(data: DataConfig, model: ModelConfig, arms: dict[str, list[Stage]], seed: int) -> dict[str, Any]:
    """Plans of all arms as plain values. Needs no GPU and no hub; without data it plans from the declared counts."""
    catalogue, origin = _catalogue(data, seed)
    plans = compile_arms(arms, catalogue, seed)
    lengths, token_note = _lengths(catalogue, model)
    report: dict[str, Any] = {"records": origin, "tokens": token_note, "arms": {}}
    for arm, stages in arms.items():
        report["arms"][arm] = [
            {
                "mix": list(stage.mix.kinds()),
                "order": stage.order,
                "epochs": stage.epochs,
                "rate": stage.rate,
                "steps": plan.num_steps,
                "items": len(plan.items),
                "tokens": int(lengths[plan.items].sum()) if lengths is not None else None,
                "coverage": coverage(plan, catalogue),
                "plan_hash": plan.sha256,
            }
            for stage, plan in zip(stages, plans[arm], strict=True)
        ]
    return report


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


def _catalogue(data: DataConfig, seed: int) -> tuple[Catalogue, str]:
    if data.sources and data.root is None and data.counts:
        return declared_catalogue(data.counts), "declared counts (no data.root given, nothing read)"
    return catalogue_of(load_corpus(data, seed)), f"records read from {data.root}" if data.sources else "made biographies"


def _lengths(catalogue: Catalogue, model: ModelConfig) -> tuple[Any, str]:
    """(tokens of each item or None, how they were counted)."""
    import numpy as np

    if not catalogue.records:
        return None, "not counted without data"
    try:
        if model.tiny:
            from trainer.model import make_tokenizer, texts_for_tokenizer

            tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), model.tiny.vocab_size)  # type: ignore[arg-type]
        else:
            assert model.name is not None
            tokenizer = load_tokenizer(model.name, model.revision, local_only=True)
    except UserError:
        words = [len(text.split()) for text in _texts(catalogue)]
        return np.ceil(np.asarray(words) * 1.4).astype(int), f"estimated (1.4 a word; {model.name} is not on this machine)"
    encoder = Encoder(tokenizer)
    return np.asarray([len(ids) for rows in catalogue.records.values() for ids, _ in encoder.encode(rows)]), "counted"


def _texts(catalogue: Catalogue) -> list[str]:
    from trainer.model import texts_for_tokenizer

    return list(texts_for_tokenizer(catalogue.records))  # type: ignore[arg-type]

"""What an experiment would train, told without training: stages, steps, tokens, coverage, plan hash."""

from pathlib import Path
from typing import Any

from data.config import DataConfig, Stage
from data.corpus.golds import unreachable, unreachable_in_words
from data.curriculum.arm_config import Merge
from data.curriculum.arms import compile_arms
from data.planning.lengths import count_lengths
from data.planning.plan_report import arms_report, read_what_is_new
from trainer.config import ModelConfig
from trainer.network.model_check import check_folder_tokens


def dry_run(
    data: DataConfig,
    model: ModelConfig,
    arms: dict[str, list[Stage]],
    seed: int,
    since: Path | None = None,
    answer_tokens: int | None = None,
) -> dict[str, Any]:
    """Plans of all arms as plain values. Needs no GPU and no hub; without data it plans from the declared counts.

    `since`: records of the run that the arms start from.
    """
    arms, catalogue, corpus, origin = read_what_is_new(data, seed, arms, since)
    lengths = count_lengths(catalogue, model.name, model.revision, model.tiny.vocab_size if model.tiny else None, model.bos)
    plans = compile_arms(arms, catalogue, seed, lengths.of)
    golds = unreachable(corpus.part("test").questions, answer_tokens, lengths.answer) if corpus and answer_tokens else None
    report = {"records": origin, "tokens": lengths.note, "arms": arms_report(arms, plans, catalogue, lengths)}
    check_folder_tokens(model, lengths.largest())
    return {**report, "unreachable": golds.as_dict() if golds else None}


def in_lines(report: dict[str, Any]) -> list[str]:
    """The report for people: two lines a stage; the base's stages once."""
    lines = [f"{report['records']}; tokens: {report['tokens']}"]
    num_base = len(report["arms"]["base"])
    for arm, stages in report["arms"].items():
        first = 0 if arm == "base" else num_base
        if stages[first:]:
            lines.append(arm + (", after base" if first else ""))
        for n, stage in enumerate(stages[first:], first):
            tokens = f"{stage['tokens']:,} tokens" if stage["tokens"] is not None else "? tokens"
            lines.append(f"  {n + 1}. {' + '.join(stage['mix'])}, {stage['order']}: {stage['in_words']}")
            adapter = stage["settings"].get("adapter")
            what = f", {adapter.get('type', 'lora')} adapter {_values(adapter)}" if adapter else ""
            lines.append(
                f"     {stage['steps']:,} steps, {tokens}, rate {stage['rate']:g} {stage['schedule']}{what}, plan {stage['plan_hash'][:12]}"
            )
    return [*lines, *filter(None, [unreachable_in_words(report["unreachable"])])]


def _values(adapter: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in adapter.items() if key != "type") + "}"


def merge_lines(merges: dict[str, Merge]) -> list[str]:
    """The arms that are put together afterwards, one line each."""
    return [f"{name}: put together: {merge.in_words()}" for name, merge in merges.items()]

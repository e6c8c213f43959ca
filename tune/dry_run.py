"""What a search would train, told without training: trials, the stages that they share, steps and tokens, cost where it can be planned."""

from collections.abc import Mapping
from typing import Any

from console import UserError
from data.config import Stage
from data.curriculum.arms import compile_arms
from data.planning.lengths import count_lengths
from data.planning.plan_report import arms_report, read_what_is_new
from experiment import Experiment
from tune.deciding.space import arm_of, crossings, for_trial, in_words, listed_trials, trial_id
from tune.planner import plan_cost

MOST_TRIALS = 200
"""Compiled one by one; of more the first so many stand for all."""


def dry_run(experiment: Experiment, values: dict[str, Any], gpus: str | None = None) -> dict[str, Any]:
    """Plans of all trials as plain values. Of optuna, which decides as it goes, random draws of the space stand for its trials.

    `gpus`: for the planner, e.g. "8xA100-80G"; None: this machine.
    """
    search = experiment.search
    assert search is not None
    arm = arm_of(experiment)
    listed = listed_trials(search, experiment.seed)
    drawn = listed is None
    if listed is None:
        as_random = search.model_copy(update={"algorithm": "random"})
        listed = listed_trials(as_random, experiment.seed) or []
    total = len(listed)
    trials = {trial_id(changes): changes for changes in listed[:MOST_TRIALS]}
    arms = {id: for_trial(values, arm, changes).stages(arm) for id, changes in trials.items()}
    base = experiment.stages("base")
    told = {"base": base, **arms}
    told, catalogue, _, origin = read_what_is_new(experiment.data, experiment.seed, told, experiment.base_records)
    model = experiment.model
    lengths = count_lengths(catalogue, model.name, model.revision, model.tiny.vocab_size if model.tiny else None, model.bos)
    try:
        plans = compile_arms(told, catalogue, experiment.seed, lengths.of)
    except UserError as error:
        place, _, reason = str(error).partition(": ")
        raise UserError(f"search.space: a trial cannot be planned ({place}): {reason}") from None
    report = arms_report(told, plans, catalogue, lengths)
    optimisers = {id: _optimiser(for_trial(values, arm, changes)) for id, changes in trials.items()}
    stages = _stages(told, report, {"base": _optimiser(experiment), **optimisers})
    alone = sum(stage["steps"] for id in trials for stage in report[id])
    return {
        "experiment": experiment.name,
        "records": origin,
        "tokens_from": lengths.note,
        "algorithm": search.algorithm,
        "arm": arm,
        "trials": total,
        "planned": len(trials),
        "drawn": drawn,
        "crossings": None if any(axis.is_range for axis in search.space.values()) else len(crossings(search.space)),
        "rungs": search.stopping.rungs if search.stopping.scheduler != "none" else [],
        "stages": stages,
        "steps": sum(stage["steps"] for stage in stages),
        "steps_alone": alone,
        "tokens": sum(stage["tokens"] or 0 for stage in stages) if all(stage["tokens"] is not None for stage in stages) else None,
        "each": [
            {"id": id, "values": changes, "steps": sum(s["steps"] for s in report[id][len(base) :])} for id, changes in trials.items()
        ],
        "plan": plan_cost(experiment, {id: stages[len(base) :] for id, stages in arms.items()}, gpus),
    }


def _optimiser(experiment: Experiment) -> str:
    return experiment.trainer.model_dump_json(include={"clip", "betas", "weight_decay"})


def _stages(arms: Mapping[str, list[Stage]], report: Mapping[str, Any], optimisers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every distinct stage once, with the number of trials that need it; what begins alike is one.

    `optimisers`: of each trial, and of the base, what of the trainer changes the weights; it changes those of every stage.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for id, stages in arms.items():
        way: tuple[str, ...] = (optimisers[id],)
        for stage, told in zip(stages, report[id], strict=True):
            way = (*way, stage.model_dump_json())
            entry = found.setdefault(
                way, {"mix": told["mix"], "steps": told["steps"], "tokens": told["tokens"], "rate": stage.rate, "trials": 0}
            )
            entry["trials"] += id != "base"
    return list(found.values())


def in_lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    kind = "random draws stand for what optuna will choose" if report["drawn"] else f"of a {report['algorithm']}"
    lines = [
        f"{report['records']}; tokens: {report['tokens_from']}",
        f"{report['trials']:,} trials of the arm {report['arm']} ({kind}); looked at after {_shares(report['rungs'])} of their own schedule",
        f"{len(report['stages']):,} stages, {report['steps']:,} steps"
        + (f", {report['tokens']:,} tokens" if report["tokens"] is not None else "")
        + f" without early stopping; every trial alone would take {report['steps_alone']:,} steps",
    ]
    for stage in report["stages"]:
        if stage["trials"] > 1:
            lines.append(
                f"  shared by {stage['trials']:,} trials: {' + '.join(stage['mix'])}, {stage['steps']:,} steps at {stage['rate']:g}"
            )
    for trial in report["each"]:
        lines.append(f"  {trial['id']}  {in_words(trial['values'])}: {trial['steps']:,} steps after the base")
    if report["trials"] > report["planned"]:
        lines.append(f"  … and {report['trials'] - report['planned']:,} more")
    return [*lines, report["plan"]["in_words"]]


def _shares(shares: list[float]) -> str:
    return ", ".join(f"{100 * share:g} %" for share in [*shares, 1.0])

"""The search space: its crossings and draws, a trial's name, and what is wrong with it before anything starts."""

import hashlib
import json
import math
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from console import UserError
from experiment import Experiment, with_changes
from experiment_yaml import ExperimentError, line_of
from tune.config import Axis, SearchConfig

Values = dict[str, Any]
"""Place in the experiment → value, of one trial."""

_DRAWS_AT_MOST = 50
"""Tries at a point that is not there yet, before a small space counts as exhausted."""


def trial_id(values: Values) -> str:
    """Equal values are the same trial, in whatever order; it cannot collide with another's and is found again after a restart."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def in_words(values: Values) -> str:
    """ "rate_documents 0.001, epochs_documents 30": the last part of each place, all of it where two end alike."""
    names = short_names(list(values))
    return ", ".join(f"{names[path]} {number(value)}" for path, value in values.items())


def short_names(paths: list[str]) -> dict[str, str]:
    """Each place by as few of its last parts as tell it from the others."""
    names = {}
    for path in paths:
        parts = path.split(".")
        size = next(
            (n for n in range(1, len(parts)) if sum(other.endswith("." + ".".join(parts[-n:])) for other in paths) == 1), len(parts)
        )
        names[path] = ".".join(parts[-size:])
    return names


def number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _applies(axis: Axis, so_far: Values) -> bool:
    return all(so_far.get(other, ...) in values for other, values in axis.when.items())


def crossings(space: dict[str, Axis]) -> list[Values]:
    """Every combination of the listed values, places whose condition does not hold left out, each combination once."""
    found: dict[str, Values] = {}
    for combination in product(*(axis.values for axis in space.values())):
        values: Values = {}
        for (path, axis), value in zip(space.items(), combination, strict=True):
            if _applies(axis, values):
                values[path] = value
        found.setdefault(trial_id(values), values)
    return list(found.values())


def _draw(space: dict[str, Axis], fixed: Values, rng: random.Random) -> Values:
    values: Values = {}
    for path, axis in space.items():
        if _applies(axis, values):
            values[path] = fixed[path] if path in fixed else _drawn(axis, rng)
    return values


def _drawn(axis: Axis, rng: random.Random) -> Any:
    if axis.loguniform:
        low, high = axis.loguniform
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    if axis.uniform:
        return rng.uniform(*axis.uniform)
    if axis.integer:
        return rng.randint(*axis.integer)
    return rng.choice(axis.values)


def listed_trials(config: SearchConfig, seed: int) -> list[Values] | None:
    """All trials of `grid` and `random` in the order they are tried; None for optuna, which decides as it goes.

    The order is shuffled: early stopping compares with those that came before, and a grid in its own order would begin with one rate.
    """
    if config.algorithm == "optuna":
        return None
    rng = random.Random(f"search {seed}")
    if config.algorithm == "grid":
        trials = crossings(config.space)
        rng.shuffle(trials)
        return trials[: config.trials]
    grids = {path: axis for path, axis in config.space.items() if axis.grid}
    drawn: dict[str, Values] = {}
    for fixed in crossings(grids) if grids else [{}]:
        for _ in range(config.trials or 0):
            for _ in range(_DRAWS_AT_MOST):
                values = _draw(config.space, fixed, rng)
                if trial_id(values) not in drawn:
                    drawn[trial_id(values)] = values
                    break
    trials = list(drawn.values())
    rng.shuffle(trials)
    return trials


def suggest(space: dict[str, Axis], trial: Any) -> Values:
    """One point by an optuna.Trial, conditions followed; values that Optuna cannot hold (lists, mappings) go through it as JSON."""
    values: Values = {}
    for path, axis in space.items():
        if not _applies(axis, values):
            continue
        if axis.loguniform:
            values[path] = trial.suggest_float(path, *axis.loguniform, log=True)
        elif axis.uniform:
            values[path] = trial.suggest_float(path, *axis.uniform)
        elif axis.integer:
            values[path] = trial.suggest_int(path, *axis.integer)
        else:
            values[path] = json.loads(trial.suggest_categorical(path, [json.dumps(value) for value in axis.values]))
    return values


def as_params(space: dict[str, Axis], values: Values) -> Values:
    """A trial's values as `suggest` gives them to Optuna."""
    return {path: value if space[path].is_range else json.dumps(value) for path, value in values.items()}


def distributions(space: dict[str, Axis], values: Values) -> dict[str, Any]:
    """Optuna's distribution of each of a trial's values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for path in values:
        axis = space[path]
        if axis.loguniform:
            found[path] = FloatDistribution(*axis.loguniform, log=True)
        elif axis.uniform:
            found[path] = FloatDistribution(*axis.uniform)
        elif axis.integer:
            found[path] = IntDistribution(*axis.integer)
        else:
            found[path] = CategoricalDistribution([json.dumps(value) for value in axis.values])
    return found


def arm_of(experiment: Experiment) -> str:
    """The arm that trials train. UserError where that is open."""
    assert experiment.search is not None
    arm = experiment.search.arm
    if arm is None:
        if len(experiment.arms) > 1:
            raise UserError(f"search.arm: say which arm is tuned: {', '.join(experiment.arms)}")
        arm = next(iter(experiment.arms))
    if arm not in experiment.arms:
        raise UserError(f"search.arm: no arm is called {arm!r}; there are {', '.join(experiment.arms)}")
    if experiment.arms[arm].merge or experiment.arms[arm].model:
        raise UserError(f"search.arm: trials train the experiment's own model, and {arm} is put together or starts from another one")
    return arm


def for_trial(values: dict[str, Any], arm: str, changes: Values) -> Experiment:
    """The experiment of one trial: its arm alone, no search, no rounds. `values`: the file's, as read_experiment gives them."""
    return with_changes(arm_alone(values, arm), changes)


def arm_alone(values: dict[str, Any], arm: str) -> dict[str, Any]:
    alone = {key: value for key, value in values.items() if key not in ("search", "updates")}
    alone["arms"] = {arm: values["arms"][arm]}
    if alone.get("exam", {}).get("compare_to") not in (None, arm):
        alone["exam"] = {**alone["exam"], "compare_to": "base"}
    return alone


def _effect(experiment: Experiment, arm: str) -> str:
    stages = [stage.model_dump_json() for stage in experiment.stages(arm)]
    return json.dumps([stages, experiment.trainer.model_dump_json(exclude={"adapter"})])  # stages carry what of it counts for them


def _between(axis: Axis) -> list[float]:
    """A value as most that a range draws are: no whole number, though its ends may be."""
    if bounds := axis.loguniform or axis.uniform:
        return [bounds[0] + (bounds[1] - bounds[0]) / math.pi]
    return []


def check_space(path: str | Path, values: dict[str, Any], experiment: Experiment) -> None:
    """ExperimentError `path:line: reason` for a place that does not exist, does nothing, or a value that it cannot take."""
    assert experiment.search is not None
    space = experiment.search.space
    arm = arm_of(experiment)
    for place, axis in space.items():
        if place.startswith("arms.") and place.split(".")[1] != arm:
            raise refusal(path, ("space", place), f"trials train the arm {arm} alone")
        outcomes = set()
        for before in _conditions(space, place):
            for value in [*axis.values, *_between(axis)]:
                try:
                    outcomes.add(_effect(for_trial(values, arm, {**before, place: value}), arm))
                except UserError as error:
                    whole = "; integer: [low, high] draws whole numbers" if "valid integer" in str(error) else ""
                    raise refusal(path, ("space", place), f"{number(value)} is refused: {error}{whole}") from None
        if len(outcomes) < len(axis.values):
            why = "; does the arm set it itself?" if place.startswith("dials.") else ""
            raise refusal(path, ("space", place), f"not every value changes what the arm {arm} trains{why}")


def _conditions(space: dict[str, Axis], place: str) -> Iterator[Values]:
    """Values of other places under which this one is searched."""
    when = space[place].when
    for combination in product(*when.values()):
        values = dict(zip(when, combination, strict=True))
        yield {**next((given for other in when for given in _conditions(space, other)), {}), **values}


def refusal(path: str | Path, key: tuple[str, ...], reason: str) -> ExperimentError:
    """`key`: below `search`, as the file has it."""
    place = "search." + ".".join(key) if key else "search"
    return ExperimentError(f"{path}:{line_of(path, ('search', *key))}: {place}: {reason}")

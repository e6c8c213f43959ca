"""Where the next trial comes from: the list of a grid or of random draws, or Optuna through Ray Tune."""

from functools import partial
from typing import Any

import optuna
import ray.tune
from ray.tune.search.optuna import OptunaSearch

from tune.config import Axis, SearchConfig
from tune.deciding.ledger import Row
from tune.deciding.objective import breaks_guard, objective
from tune.deciding.space import Values, as_params, distributions, listed_trials, suggest, trial_id

_STUDY = "search"


def remaining(search: SearchConfig, seed: int, rows: list[Row], until: float = 1.0) -> list[Values] | None:
    """Trials of a list that have neither ended nor come to this share of their schedule, those under way first; None for optuna."""
    trials = listed_trials(search, seed)
    if trials is None:
        return None
    ended = {row.id for row in rows if row.finished or any(rung.share >= until for rung in row.rungs)}
    begun = {row.id for row in rows}
    left = [values for values in trials if trial_id(values) not in ended]
    return sorted(left, key=lambda values: trial_id(values) not in begun)


def num_left(search: SearchConfig, seed: int, rows: list[Row]) -> int:
    listed = remaining(search, seed, rows)
    if listed is not None:
        return len(listed)
    assert search.trials is not None
    return max(0, search.trials - sum(row.finished for row in rows))


def past_study(search: SearchConfig, rows: list[Row], guard_base: float | None = None) -> optuna.Study:
    """What has been tried, as Optuna sees it; trials that were under way are asked for first. `guard_base`: of the guarded set before the arm."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if search.direction == "max" else "minimize"
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), study_name=_STUDY, direction=direction)
    for row in rows:
        params, known = as_params(search.space, row.values), distributions(search.space, row.values)
        if not row.finished:
            study.enqueue_trial(params)
        elif row.state == "failed" or row.last is None:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, params=params, distributions=known))
        else:
            refused = row.state == "refused" or breaks_guard(search, row.last.guard, guard_base) is not None
            value = objective(search, row.last.score["mean"], refused)
            study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=known))
    return study


def searcher(search: SearchConfig, seed: int, rows: list[Row], guard_base: float | None = None) -> Any:
    """Ray Tune's OptunaSearch with the past in it. The seed moves on with the trials: a restart must not draw its first points again."""
    study = past_study(search, rows, guard_base)
    return OptunaSearch(
        space=partial(_proposal, search.space),  # no lambda: Ray Tune pickles its searcher
        metric="objective",
        mode=search.direction,
        storage=study._storage,
        study_name=_STUDY,
        sampler=optuna.samplers.TPESampler(seed=seed + len(rows), n_startup_trials=min(10, max(4, (search.trials or 20) // 3))),
    )


def _proposal(space: dict[str, Axis], trial: Any) -> dict[str, Any]:
    return {"values": suggest(space, trial)}


def tune_settings(
    search: SearchConfig, seed: int, rows: list[Row], until: float, guard_base: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(param_space, what TuneConfig needs) of the trials that are left."""
    listed = remaining(search, seed, rows, until)
    if listed is not None:
        return {"values": ray.tune.grid_search(listed)}, {}
    return {}, {"search_alg": searcher(search, seed, rows, guard_base), "num_samples": num_left(search, seed, rows)}

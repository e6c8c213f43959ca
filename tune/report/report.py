"""report.json of a search: every trial, the winner and its one look at the test, what mattered, what it cost."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import optuna

from evaluation.score_files import SCORE_FORMAT, Score, closed
from evaluation.scoring.aggregate import set_scores
from experiment import Experiment
from tune.config import SearchConfig
from tune.deciding.ledger import FINISHED, Row, ranked
from tune.deciding.signals import BAD_SIDE, measured
from tune.deciding.space import Values, as_params, distributions, short_names

_ORDERS = 1000
_MOST_LINES = 8
_FEWEST = 4
"""Trials with a score that importances are worth computing of."""


def build_report(
    experiment: Experiment,
    arm: str,
    rows: Sequence[Row],
    questions: Mapping[str, int],
    base: Mapping[str, Any] | None,
    tests: Mapping[str, Score],
    ended: str | None,
) -> dict[str, Any]:
    """Plain values. `questions`: {"validation", "test"}; `base`: {"score", "guard"} of what trials start from; `tests`: exams on the test
    questions, of "base" and the winner's id; `ended`: why the search ended before it was through."""
    search = experiment.search
    assert search is not None
    best = ranked(list(rows), search.direction)
    winner = best[0] if best else None
    return {
        "experiment": experiment.name,
        "about": experiment.about,
        "arm": arm,
        "seed": experiment.seed,
        "search": search.model_dump(mode="json", exclude_unset=True),
        "metric": search.metric,
        "direction": search.direction,
        "names": short_names(list(search.space)),
        "questions": dict(questions),
        "base": {key: base[key] for key in ("score", "guard")} if base else None,
        "ended": ended,
        "trials": [asdict(row) for row in rows],
        "ranking": [row.id for row in best],
        "tied": _tied(best),
        "winner": _winner(winner, tests, experiment) if winner else None,
        "base_test": _test(tests["base"], experiment) if "base" in tests else None,
        "surface": surface(search, rows),
        "importances": importances(search, rows),
        "signals": _signals(search, rows, experiment.seed),
        "totals": _totals(search, rows),
        "versions": {name: metadata.version(name) for name in ("ray", "optuna", "torch", "deepspeed")},
        "score_format": SCORE_FORMAT,
    }


def _winner(row: Row, tests: Mapping[str, Score], experiment: Experiment) -> dict[str, Any]:
    assert row.last
    test = _test(tests[row.id], experiment) if row.id in tests else None
    return {"id": row.id, "values": row.values, "validation": row.last.score, "test": test, "hf": row.hf}


def _test(score: Score, experiment: Experiment) -> dict[str, Any]:
    """Scores of each set that was asked closed book."""
    sets = {name: closed(score.rows, name) for name in ("test", "train", "replay", "retention")}
    return {name: set_scores(rows, experiment.exam.resamples, experiment.seed) for name, rows in sets.items() if rows}


def _tied(best: Sequence[Row]) -> list[str]:
    """Trials whose score lies inside the winner's interval: another choice of questions may have put them first."""
    if not best or best[0].last is None:
        return []
    interval = best[0].last.score
    return [row.id for row in best[1:] if row.last and interval["low"] <= row.last.score["mean"] <= interval["high"]]


def common_share(rows: Sequence[Row]) -> float | None:
    """The share of their own schedules at which trials can be compared: the end where at least half came to it, else the largest that all
    with a score have reached; None where nothing has been examined."""
    examined = [row for row in rows if row.rungs]
    if not examined:
        return None
    if 2 * sum(row.rungs[-1].share == 1 for row in examined) >= len(examined):
        return 1.0
    shares = {rung.share for rung in examined[0].rungs}
    for row in examined[1:]:
        shares &= {rung.share for rung in row.rungs}
    return max(shares, default=1.0)


def scores_at(rows: Sequence[Row], share: float | None) -> list[tuple[Row, dict[str, float]]]:
    return [(row, rung.score) for row in rows for rung in row.rungs if rung.share == share]


def surface(search: SearchConfig, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The paper's Figure 5 of this search: {"x", "by", "share", "lines": {value or range of `by`: [[x, score, low, high]]}, "over"}.

    x: epochs or steps, by: a rate, where the space has them, else its first two numeric places. Where the space has more places, the
    best over them is shown, and "over" names them. Scores are those at common_share.
    """
    share = common_share(rows)
    seen = scores_at(rows, share)
    numeric = [path for path in search.space if seen and all(_is_number(row.values.get(path)) for row, _ in seen)]
    if not numeric:
        return None
    x = next((path for path in numeric if path.rpartition(".")[2].startswith(("epochs", "steps"))), numeric[0])
    others = [path for path in numeric if path != x]
    by = next((path for path in others if "rate" in path.rpartition(".")[2]), others[0] if others else None)
    groups = _groups([row.values[by] for row, _ in seen]) if by else {"": (-math.inf, math.inf)}
    better = max if search.direction == "max" else min
    lines: dict[str, list[list[float]]] = {}
    for name, (low, high) in groups.items():
        points: dict[float, list[float]] = {}
        for row, score in seen:
            if by is None or low <= row.values[by] <= high:
                at = float(row.values[x])
                point = [at, score["mean"], score["low"], score["high"]]
                points[at] = better(points.get(at, point), point, key=lambda p: p[1])
        if points:
            lines[name] = [points[at] for at in sorted(points)]
    return {"x": x, "by": by, "share": share, "lines": lines, "over": [path for path in search.space if path not in (x, by)]}


def _groups(values: Sequence[float]) -> dict[str, tuple[float, float]]:
    """A line for each value; of many, four ranges with as many trials in each."""
    distinct = sorted(set(values))
    if len(distinct) <= _MOST_LINES:
        return {f"{value:.3g}": (value, value) for value in distinct}
    ordered = sorted(values)
    parts = [ordered[n * len(ordered) // 4 : (n + 1) * len(ordered) // 4] for n in range(4)]
    return {f"{part[0]:.2g} to {part[-1]:.2g}": (part[0], part[-1]) for part in parts if part}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def importances(search: SearchConfig, rows: Sequence[Row]) -> dict[str, float]:
    """Share of the spread of scores that each place explains, by Optuna's functional ANOVA; {} of too few trials.

    Scores are those at common_share. Places under a condition are left out.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = [_as_trial(search, row.values, score["mean"]) for row, score in scores_at(rows, common_share(rows))]
    seen = [trial for trial in found if trial is not None]
    if len(seen) < _FEWEST or len({trial.value for trial in seen}) < 2:
        return {}
    study = optuna.create_study(direction="maximize" if search.direction == "max" else "minimize")
    study.add_trials(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    return {path: float(share) for path, share in shares.items()}


def _as_trial(search: SearchConfig, values: Values, mean: float) -> optuna.trial.FrozenTrial | None:
    """None for values that the space has no more: that of a grid or of random draws may change between two starts."""
    try:
        params, known = as_params(search.space, values), distributions(search.space, values)
        return optuna.trial.create_trial(value=mean, params=params, distributions=known)
    except (KeyError, ValueError):
        return None


def _signals(search: SearchConfig, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Of trials that came to their end, whatever became of the others: what a stopped one would have come to nobody knows."""
    found = {}
    for name in BAD_SIDE:
        told = [(row.signals[name], row.last.score["mean"]) for row in rows if row.state == "done" and row.last and name in row.signals]
        better = 1 if search.direction == "max" else -1
        found[name] = measured(name, [value for value, _ in told], [score for _, score in told], better, _ORDERS, seed)
    return found


def _totals(search: SearchConfig, rows: Sequence[Row]) -> dict[str, Any]:
    gpu_hours = sum(row.gpu_hours for row in rows)
    return {
        "trials": len(rows),
        "states": {state: count for state in ("paused", *FINISHED) if (count := sum(row.state == state for row in rows))},
        **{key: sum(getattr(row, key) for row in rows) for key in ("steps", "tokens", "train_seconds", "exam_seconds")},
        "gpu_hours": gpu_hours,
        "cost": gpu_hours * search.price_per_gpu_hour if search.price_per_gpu_hour else None,
    }

"""Early signs of a good end (arXiv 2412.13337), each measured for how often it would have stopped the winner."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

FEWEST = 4
"""Trials that must have come before a signal may stop one."""
QUARTER = 0.25
BAD_SIDE = {"grad_norm": 1, "early_loss": -1}
"""A lower gradient norm and a higher early loss are said to go with a better final model: 1, large values are bad; -1, small ones."""


def bad_signal(name: str, value: float, before: Sequence[float]) -> bool:
    """Whether `value` lies in the bad quarter of those that came before."""
    if len(before) < FEWEST:
        return False
    side = BAD_SIDE[name]
    return bool(side * value > np.quantile([side * other for other in before], 1 - QUARTER))


def stopped_in(name: str, values: Sequence[float]) -> list[bool]:
    """Which trials the rule stops when they come in this order; a stopped one is compared with all the same."""
    return [bad_signal(name, value, values[:n]) for n, value in enumerate(values)]


def measured(name: str, values: Sequence[float], scores: Sequence[float], better: int, orders: int, seed: int) -> dict[str, Any] | None:
    """How a signal would have done: {"trials", "agreement", "winner_stopped", "stopped"} over random orders of the trials.

    `scores`: at the end, of the same trials; `better`: 1 where more is better. agreement: Spearman's rank correlation of the end with
    what the paper says (1: the sign it says); winner_stopped: share of the orders in which the best trial is stopped; stopped: mean
    share of trials that are. None with fewer trials than the rule needs.
    """
    if len(values) <= FEWEST or len(values) != len(scores):
        return None
    ends = better * np.asarray(scores, dtype=np.float64)
    good = -BAD_SIDE[name] * np.asarray(values, dtype=np.float64)
    winner, rng = int(np.argmax(ends)), random.Random(f"signals {seed}")
    kills, stops = 0, 0.0
    for _ in range(orders):
        order = rng.sample(range(len(values)), len(values))
        stopped = stopped_in(name, [values[n] for n in order])
        kills += stopped[order.index(winner)]
        stops += sum(stopped) / len(stopped)
    return {"trials": len(values), "agreement": _spearman(good, ends), "winner_stopped": kills / orders, "stopped": stops / orders}


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    ranks = [_ranks(x) for x in (a, b)]
    if min(float(r.std()) for r in ranks) == 0:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks of equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]

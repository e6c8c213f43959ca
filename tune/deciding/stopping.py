"""Who ends trials before their time: Ray Tune's ASHA at rungs of their own schedule, early signals, and the caps of the search."""

import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tune.config import SearchConfig
from tune.deciding.ledger import Row, Rung
from tune.deciding.objective import breaks_guard, objective
from tune.deciding.signals import BAD_SIDE, bad_signal


def make_scheduler(search: SearchConfig, rows: list[Row], guard_base: float | None = None) -> TrialScheduler:
    """ASHA whose time is percent of a trial's schedule; what trials of an earlier start scored at its rungs is told to it, and not by them again.

    `guard_base`: of the guarded set before the arm.
    """
    stopping = search.stopping
    if stopping.scheduler != "asha" or not stopping.rungs:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="progress",
        metric="objective",
        mode=search.direction,
        max_t=100,
        # Its rungs are products of this: 0.15 · 3 must not be above 45 % by a last bit.
        grace_period=100 * stopping.first_rung * (1 - 1e-9),
        reduction_factor=stopping.reduction,
    )
    sign = 1 if search.direction == "max" else -1
    for row in rows:
        for rung in row.rungs:
            value = objective(search, rung.score["mean"], breaks_guard(search, rung.guard, guard_base) is not None)
            # Not public: without it a restarted search would let its first trials pass every rung, having nothing to compare with.
            scheduler._brackets[0].on_result(SimpleNamespace(trial_id=row.id), 100 * rung.share, sign * value)
    return scheduler


class Ends(ray.tune.Stopper):  # type: ignore[misc]
    """Asked by Ray Tune after every report (this trial?) and all the time (the whole search?)."""

    def __init__(self, search: SearchConfig, rows: Callable[[], list[Row]], over: Callable[[], str | None]) -> None:
        """`over`: why the search must end now, or None."""
        self._search, self._rows, self._over = search, rows, over
        self._seen: dict[str, dict[str, float]] = {row.id: row.signals for row in rows() if row.signals}
        self.reasons: dict[str, str] = {}
        """Trial's row → why it was stopped here."""
        self.ended: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        row = result.get("trial")
        if row is None or row in self._seen or result["progress"] >= 100:
            return False
        signals = {name: result[name] for name in BAD_SIDE if name in result}
        before = list(self._seen.values())
        self._seen[row] = signals
        for name in self._search.stopping.signals:
            values = [other[name] for other in before if name in other]
            if name in signals and bad_signal(name, signals[name], values):
                self.reasons[row] = f"{name} {signals[name]:.3g} is among the worst quarter so far"
                return True
        return False

    def stop_all(self) -> bool:
        self.ended = self.ended or self._over()
        return self.ended is not None


def cap_reached(search: SearchConfig, rows: list[Row]) -> str | None:
    """Which cap the search has come to, in words."""
    hours = sum(row.seconds for row in rows) / 3600
    gpu_hours = sum(row.gpu_hours for row in rows)
    if search.hours is not None and hours >= search.hours:
        return f"{hours:.2f} hours of training and exams; the cap is {search.hours:g} (search.hours)"
    if search.gpu_hours is not None and gpu_hours >= search.gpu_hours:
        return f"{gpu_hours:.2f} GPU-hours; the cap is {search.gpu_hours:g} (search.gpu_hours)"
    if search.cost is not None and search.price_per_gpu_hour and gpu_hours * search.price_per_gpu_hour >= search.cost:
        return f"a cost of {gpu_hours * search.price_per_gpu_hour:.2f}; the cap is {search.cost:g} (search.cost)"
    return None


def cut(search: SearchConfig, rows: list[Row], share: float, guard_base: float | None = None) -> list[tuple[Row, str]]:
    """Successive halving at a rung that all trials have come to: those that do not go on, and why. The same answer however often asked.

    A trial that breaks the guard by then is behind every other: it would be refused at its end.
    """
    reached = [(row, rung) for row in rows for rung in row.rungs if math.isclose(rung.share, share)]
    sign = 1 if search.direction == "max" else -1

    def place(pair: tuple[Row, Rung]) -> tuple[bool, float, float]:
        row, rung = pair
        return breaks_guard(search, rung.guard, guard_base) is not None, -sign * rung.score["mean"], row.started

    reached.sort(key=place)
    kept = max(1, math.ceil(len(reached) / search.stopping.reduction))
    reason = f"not among the best {kept} of {len(reached)} at {100 * share:g} % of its schedule"
    return [(row, reason) for row, _ in reached[kept:] if not row.finished]


class Cached:
    """A value that is looked up at most once a second: Ray Tune asks its stoppers in every turn of its loop."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find, self._at, self._value = find, 0.0, None

    def __call__(self) -> Any:
        if time.monotonic() - self._at > 1:
            self._value, self._at = self._find(), time.monotonic()
        return self._value

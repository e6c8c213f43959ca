"""Settings of a search: which values of an experiment are tried, what decides, and when it ends."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data.ground.strict import Strict

Metric = Literal["em", "recall", "f1", "rouge_l", "choices", "document_loss"]
"""`choices`: share of multiple-choice questions answered right by letter, options shuffled; `document_loss`: nats a token of the test
documents, which is what other trainers tune, and the wrong target (PIT, arXiv 2402.12847, §3: it falls while answers do not come)."""

NOT_TO_BE_SEARCHED = ("name", "about", "seed", "runs", "data", "model", "base_run", "updates", "exam", "search")
"""They would change what is asked or who is asked, not how it is taught."""


_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def _number(value: Any) -> Any:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip()):
        return value
    return int(value) if value.strip().lstrip("+-").isdigit() else float(value)


class Axis(Strict):
    """The values of one place in the experiment; exactly one of the five forms."""

    loguniform: tuple[float, float] | None = None
    """[low, high], evenly on a logarithmic scale: rates."""
    uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    """[low, high], both included."""
    choice: list[Any] = []
    """Any of these: drawn; under `algorithm: grid` each."""
    grid: list[Any] = []
    """Each of these, crossed with the other grids; under `algorithm: random` every crossing gets `trials` draws of the rest."""
    when: dict[str, list[Any]] = {}
    """Searched only where another place of the space has one of these values; else the experiment's own value stays."""

    @field_validator("choice", "grid", mode="before")
    @classmethod
    def numbers_are_numbers(cls, values: Any) -> Any:
        """A quoted 1e-3 trains as a rate, for settings take numbers as texts; here it would be no number to order or to plot."""
        return [_number(value) for value in values] if isinstance(values, list) else values

    @field_validator("when", mode="before")
    @classmethod
    def conditions_too(cls, when: Any) -> Any:
        lists = when.items() if isinstance(when, dict) and all(isinstance(values, list) for values in when.values()) else ()
        return {place: [_number(value) for value in values] for place, values in lists} or when

    @model_validator(mode="after")
    def one_form(self) -> "Axis":
        given = [name for name in ("loguniform", "uniform", "integer") if getattr(self, name) is not None]
        given += [name for name in ("choice", "grid") if name in self.model_fields_set]
        if len(given) != 1:
            raise ValueError("give exactly one of loguniform, uniform, integer, choice, grid")
        form, value = given[0], getattr(self, given[0])
        if not value:
            raise ValueError(f"{form}: is empty; give at least one value")
        if form in ("choice", "grid"):
            if any(value[n] in value[:n] for n in range(len(value))):
                raise ValueError(f"{form}: a value stands twice")
        elif value[0] >= value[1]:
            raise ValueError(f"{form}: is empty: {value[0]:g} is not below {value[1]:g}")
        if form == "loguniform" and value[0] <= 0:
            raise ValueError("loguniform: low must be above 0")
        return self

    @property
    def values(self) -> list[Any]:
        """What a grid or choice lists; of a range its ends, to be checked."""
        bounds = self.loguniform or self.uniform or self.integer
        return list(bounds) if bounds else [*self.choice, *self.grid]

    @property
    def is_range(self) -> bool:
        return not (self.choice or self.grid)


class Guard(Strict):
    """Refuses a trial that forgets too much: it is trained and shown, and cannot win."""

    set: Literal["replay", "retention"]
    """Questions of the replay split, or of the file exam.retention; exact match."""
    most_points: Annotated[float, Field(ge=0, le=100)]
    """So far may it fall below the model before the arm, in points of 100."""


class Stopping(Strict):
    """When a trial ends before its schedule does. A rung is a share of the trial's own schedule, never a number of steps:
    a cosine over E epochs cannot be compared at the same step with one over 2E."""

    scheduler: Literal["asha", "halving", "none"] = "asha"
    """asha: at each rung only the best 1/reduction of the trials that came so far goes on (Ray Tune's ASHA; arXiv 1810.05934): never
    waits, but the first to come pass whatever they score. halving: all trials come to a rung before the best 1/reduction of them goes on
    (successive halving, arXiv 1502.07943): spends least, needs trials that are known from the beginning. none: rungs stop nothing."""
    first_rung: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the schedule; further rungs at × reduction, until 1. With 1 trials are examined at their end alone."""
    reduction: Annotated[float, Field(gt=1)] = 2
    over: Literal["last_stage", "curriculum"] = "last_stage"
    """Shares of the last stage's steps, or of all steps after the base. Before the new documents are read no score says anything."""
    explodes_at: Annotated[float, Field(gt=1)] | None = 3.0
    """The loss may grow to so many times that of a stage's first steps; a loss that is no number ends a trial in any case."""
    signals: list[Literal["grad_norm", "early_loss"]] = []
    """Early signs of arXiv 2412.13337: a trial is stopped at its first rung where its gradient norm is among the largest, or its loss
    among the smallest, quarter so far. The report says how often each would have stopped the winner, whether used or not."""

    @property
    def rungs(self) -> list[float]:
        """Rising shares below 1."""
        shares, share = [], self.first_rung
        while share < 1 - 1e-9:
            shares.append(share)
            share *= self.reduction
        return shares


class SearchConfig(Strict):
    arm: str | None = None
    """Whose curriculum is tuned; may be left out where there is one arm."""
    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """Places of the experiment as on the command line (dials.rate_documents, arms.pit.stages.0.epochs, trainer.weight_decay) → values."""
    algorithm: Literal["optuna", "random", "grid"] = "optuna"
    """optuna: its tree-structured Parzen estimator; grid: every crossing."""
    metric: Metric = "em"
    """On the questions that exam.validation_share sets aside."""
    mode: Literal["max", "min"] | None = None
    """Follows from the metric; given, it must agree."""
    guard: Guard | None = None
    stopping: Stopping = Stopping()
    trials: Annotated[int, Field(ge=1)] | None = None
    """At most so many; needed unless the algorithm is grid."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Training and exam of all trials together, whatever runs side by side. Over a cap nothing new begins, what runs is kept for later."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    cost: Annotated[float, Field(gt=0)] | None = None
    """In the currency of price_per_gpu_hour."""
    price_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    gpus_per_trial: Annotated[int, Field(ge=0)] | None = None
    """Empty: trainer.num_workers, else 1, where there are GPUs."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs that a trial of one process reserves."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials side by side; empty: as many as fit beside the exam."""
    keep_best: Annotated[int, Field(ge=1)] = 1
    """So many trials keep their weights."""

    @property
    def direction(self) -> Literal["max", "min"]:
        return "min" if self.metric == "document_loss" else "max"

    @model_validator(mode="after")
    def makes_sense(self) -> "SearchConfig":
        if self.mode and self.mode != self.direction:
            raise ValueError(f"mode: of {self.metric} the {self.direction}imum is best; leave mode out")
        if self.algorithm != "grid" and self.trials is None:
            raise ValueError(f"trials: is missing: {self.algorithm} draws without end")
        if self.stopping.scheduler == "halving" and self.algorithm == "optuna":
            raise ValueError(
                "stopping.scheduler: halving compares trials that are known from the beginning, and optuna draws as it goes; take asha"
            )
        if self.cost and not self.price_per_gpu_hour:
            raise ValueError("cost: needs price_per_gpu_hour")
        for path, axis in self.space.items():
            self._check_axis(path, axis)
        return self

    def _check_axis(self, path: str, axis: Axis) -> None:
        place = f"space.{path}"
        if (root := path.partition(".")[0]) in NOT_TO_BE_SEARCHED:
            raise ValueError(f"{place}: {root} cannot be searched: a trial must differ in how it is taught alone")
        if self.algorithm == "grid" and axis.is_range:
            raise ValueError(f"{place}: a grid needs listed values; give grid: […], or another algorithm")
        if self.algorithm == "optuna" and axis.grid:
            raise ValueError(f"{place}: optuna draws, so nothing is crossed; give choice, or another algorithm")
        earlier = list(self.space)[: list(self.space).index(path)]
        for other, values in axis.when.items():
            if other not in earlier:
                raise ValueError(f"{place}.when: {other} does not stand before it in the space")
            known = self.space[other]
            if lacking := [value for value in values if not known.is_range and value not in known.values]:
                raise ValueError(f"{place}.when: {other} is never {lacking[0]!r}")
            if known.is_range or not values:
                raise ValueError(f"{place}.when: needs a choice or grid to depend on, and values of it")

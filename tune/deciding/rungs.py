"""Where in a trial's own schedule it is looked at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Point:
    share: float
    """Of the schedule; 1: the end."""
    stage: int
    """Place among the trial's own stages."""
    step: int
    """Steps of that stage that are trained by then."""


def points(steps: Sequence[int], shares: Sequence[float], over: Literal["last_stage", "curriculum"]) -> list[Point]:
    """Points at these shares of the schedule, rising, and the end; `steps`: of each of the trial's own stages.

    A schedule that is too short to tell two of them apart has fewer.
    """
    first = len(steps) - 1 if over == "last_stage" else 0
    total = sum(steps[first:])
    found: list[Point] = []
    for share in shares:
        left = max(1, math.ceil(share * total - 1e-9))
        if left >= total or (found and left <= sum(steps[first : found[-1].stage]) + found[-1].step):
            continue
        stage = first
        while left > steps[stage]:
            left -= steps[stage]
            stage += 1
        found.append(Point(share, stage, left))
    return [*found, Point(1.0, len(steps) - 1, steps[-1])]

"""Which shapes a stage's rows have: as they are packed, or a few that kernels and compiled code meet again and again (data/rows/static_rows.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.curriculum.plan import load_plan
from data.rows.flat_rows import Row
from data.rows.static_rows import Shapes, fill, static_shapes
from trainer.jobs.prepare import Job, lengths_of


@dataclass(frozen=True)
class StageShapes:
    static: Shapes | None
    """None: as they are packed."""
    fill: float = 1.0
    """Share of the stage's tokens that are no padding."""

    def rows(self, rows: Iterator[Row]) -> Iterator[Row]:
        return rows if self.static is None else map(self.static.pad, rows)

    def in_words(self) -> str:
        """For the log, one line."""
        if self.static is None:
            return "shapes: exact, rows as they are packed"
        lengths = ", ".join(f"{length:,}" for length in self.static.lengths)
        return f"shapes: static, rows of {lengths} tokens, {self.static.pieces} items at most, {self.fill:.1%} of their tokens real"


def shapes_of(wanted: Literal["auto", "static", "exact"], device: torch.device, job: Job, world_size: int, one_item: bool) -> StageShapes:
    """trainer.shapes resolved for a stage; a function of its plan, so that all ranks find the same.

    auto leaves rows of one item as they are: their lengths lie so far apart that eight of them pad a seventh.
    """
    if wanted == "exact" or (wanted == "auto" and (device.type != "cuda" or one_item)):
        return StageShapes(None)
    plan, lengths = load_plan(Path(job.plan_path)), np.load(lengths_of(Path(job.plan_path)))
    found = static_shapes(plan, lengths, world_size, job.capacity, job.longest, one_item)
    return StageShapes(found, fill(found, plan, lengths, world_size, job.capacity, job.longest, one_item))

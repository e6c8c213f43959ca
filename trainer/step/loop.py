"""The loop over a stage's steps: rows in, optimiser steps, metrics out. Runs under Ray and without it."""

import math
import resource
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch

from console import RunError
from data.config import Stage
from data.rows.flat_rows import Row, counts
from failpoints import hit
from trainer.schedule import learning_rate
from trainer.step.placing import Placing
from trainer.step.step import Draws, Engine, Stopwatch, optimiser_step
from trainer.watch.guard import Guard

Metrics = dict[str, Any]
_MAX_BAD_STEPS = 10


def run_stage(
    engine: Engine,
    rows: Iterator[Row],
    stage: Stage,
    num_steps: int,
    attention: str,
    flops_of_row: Callable[[Row], float],
    report: Callable[[Metrics], None],
    first_step: int = 0,
    before: Metrics | None = None,
    guard: Guard | None = None,
    draw: Draws = lambda row: None,
) -> Metrics:
    """Trains steps [first_step, num_steps) and returns the totals {steps, tokens, seconds, loss, bad_steps, first_step_s}.

    first_step_s: of the first step of this start, in which layers are compiled and caches fill; it stands in the metrics too.

    `before`: the totals of the steps before first_step. `report` gets the metrics of every step on every rank: time (since 1970), loss (of the whole
    step), grad_norm, rate, tokens (all ranks), tokens_per_s, flops_per_s (all ranks, model FLOPs), step_s, data_wait_s (this rank),
    memory_gib (this rank), and now and then which rank is slowest. Raises Stopped (trainer/watch/guard.py) when asked to end.
    """
    started = time.monotonic()
    done = before or {"tokens": 0, "seconds": 0.0, "bad_steps": 0, "loss": float("nan")}
    total_tokens, loss, bad_steps = done["tokens"], done["loss"], done["bad_steps"]
    next_step, bad_in_a_row, stopwatch = first_step, 0, Stopwatch(engine.device)
    clock = _Clock()
    placing = Placing(attention, engine.device)
    here: Metrics = {}

    def totals() -> Metrics:
        seconds = done["seconds"] + time.monotonic() - started
        return {"steps": next_step, "tokens": total_tokens, "seconds": seconds, "loss": loss, "bad_steps": bad_steps, **here}

    if guard:
        guard.waiting(first_step)
    for step, group in groupby(placing.rows(clock.waits(rows)), key=lambda row: row["step"]):
        assert step == next_step, f"the stream gave step {step}, the plan says {next_step}"
        if guard:
            guard.stepping(step)
        micro_rows = list(group)
        assert len(micro_rows) == micro_rows[0]["num_micro_steps"], f"step {step}: rows are missing"
        rate = learning_rate(stage, step, num_steps)
        share, grad_norm = optimiser_step(engine, micro_rows, rate, attention, stopwatch, draw)
        tokens = sum(int(row["cu_seqlens"][-1]) for row in micro_rows if counts(row))
        wishes = guard.wishes(step) if guard else (0.0, 0.0)
        loss, step_tokens, flops, saves, stops = _sum_over_ranks(
            share, [tokens, sum(map(flops_of_row, micro_rows)), *wishes], engine.device
        )
        total_tokens += int(step_tokens)
        # Engines have skipped a step whose gradient norm is no number; the sum makes all ranks agree here.
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        bad_steps, bad_in_a_row = bad_steps + (not finite), 0 if finite else bad_in_a_row + 1
        if bad_in_a_row == _MAX_BAD_STEPS:
            raise RunError(f"loss or gradient is no number for {_MAX_BAD_STEPS} steps up to step {step}: lower the rate (now {rate:g})")
        step_s, data_wait_s = clock.lap()
        forward_s = stopwatch.seconds()
        slowest = guard.compare(forward_s, data_wait_s, engine.device) if guard else {}
        if step == first_step:
            here["first_step_s"] = step_s
        report(
            {
                "step": step,
                "time": time.time(),
                "loss": loss,
                "grad_norm": grad_norm,
                "rate": rate,
                "tokens": int(step_tokens),
                "tokens_per_s": step_tokens / step_s,
                "flops_per_s": flops / step_s,
                "step_s": step_s,
                "data_wait_s": data_wait_s,
                "memory_gib": _memory_gib(engine.device),
                **slowest,
                **here,
            }
        )
        next_step += 1
        if guard:
            guard.finished(step, step_s, loss, finite)
            if (stops or saves) and next_step < num_steps:  # after the last step the stage is committed, which no stop is worth losing
                guard.save(next_step, totals(), stop=stops > 0)
            guard.waiting(next_step)
    assert next_step == num_steps, f"the stream ended after {next_step} of {num_steps} steps"
    return totals()


class _Clock:
    """Seconds of each step, and how many of them the loop waited for rows."""

    def __init__(self) -> None:
        self._lap = time.monotonic()
        self._waited = 0.0

    def waits(self, rows: Iterator[Row]) -> Iterator[Row]:
        # groupby asks for the next step's first row at the end of this one: that wait counts to this step.
        while True:
            asked = time.monotonic()
            hit("loop.data")
            row = next(rows, None)
            self._waited += time.monotonic() - asked
            if row is None:
                return
            yield row

    def lap(self) -> tuple[float, float]:
        now = time.monotonic()
        step_s, waited_s = now - self._lap, self._waited
        self._lap, self._waited = now, 0.0
        return step_s, waited_s


def _sum_over_ranks(share: torch.Tensor, counts: list[float], device: torch.device) -> list[float]:
    """One small all-reduce a step: every rank then knows the same loss and counts. The only time that the loop reads what the device has computed, after the whole step."""
    tensor = torch.cat([share.double().reshape(1), torch.tensor(counts, dtype=torch.float64).to(device, non_blocking=True)])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor.tolist()  # type: ignore[no-any-return]


def _memory_gib(device: torch.device) -> float:
    """Peak of the device's allocator, or this process's peak resident size on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

"""What stands beside the training loop on every rank: heartbeat, checkpoints, comparison of replicas, bad and slow steps told."""

import time
from collections import deque
from statistics import median
from typing import Any, Protocol

import torch

from console import RunError
from failpoints import hit
from trainer.config import TrainerConfig
from trainer.kernels.compiled import Graphs
from trainer.store.checkpoint import Saver
from trainer.watch.heartbeat import Heartbeat
from trainer.watch.replicas import refuse_differences

_SPIKE = 10.0
_WINDOW = 50
_FIRST_STEPS = 3
_DATA_LIMIT_S = 600.0  # the stream itself gives up before, and says why
_STRAGGLER = 2.0
_STRAGGLER_S = 0.1
_COMPARE_STEPS = 10
_COMPILE_S = 300.0  # one kind of layer takes seconds, on a busy machine a minute
_MEDIAN_OF = 5
"""Losses that one comparison of `explodes_at` takes together: a single bad batch is no explosion."""


class Stopped(Exception):
    """The user, the cluster or a search asked for an end; what is done is committed."""

    def __init__(self, steps: int) -> None:
        """`steps`: of the stage, that have been done."""
        super().__init__(steps)
        self.steps = steps


class Saveable(Protocol):
    """DeepSpeedEngine, as far as a checkpoint needs it."""

    module: torch.nn.Module

    def state_fragments(self) -> Any: ...

    def optimizer_steps(self) -> int: ...


class Guard:
    """One stage on one rank. The loop calls it around every step; ranks agree through the loop's one all-reduce."""

    def __init__(
        self,
        engine: Saveable,
        saver: Saver,
        beat: Heartbeat,
        config: TrainerConfig,
        key: str,
        rank: int,
        pause_after: int | None = None,
        explodes_at: float | None = None,
        compiles: bool = False,
    ) -> None:
        """`pause_after`, `explodes_at`: see WorkerSettings. `compiles`: a step may meet a shape that is compiled first, on this rank or on another that it waits for."""
        self._engine, self._saver, self._beat, self._config, self._key, self._rank = engine, saver, beat, config, key, rank
        self._pause_after, self._explodes_at = pause_after, explodes_at
        self._first_losses: list[float] = []
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._saved_at = time.monotonic()
        self._told_slow: set[int] = set()
        self._steps_here = 0
        self._forward_s, self._wait_s, self._compared = 0.0, 0.0, 0
        self._graphs, self._compile_s = Graphs(), _COMPILE_S if compiles else 0.0

    def waiting(self, step: int) -> None:
        self._beat.enter("data", _DATA_LIMIT_S, step)

    def stepping(self, step: int) -> None:
        watch = self._config.watch
        limit_s = 3 * median(self._times) + watch.step_s + self._compile_s if len(self._times) >= _FIRST_STEPS else watch.start_s
        self._beat.enter("step", limit_s, step)
        hit("step.begin")

    def wishes(self, step: int) -> tuple[float, float]:
        """(save?, stop?) of this rank, to be summed over ranks. Rank 0 looks at the clock for all."""
        checkpoint = self._config.checkpoint
        save = bool(checkpoint.every_steps and (step + 1) % checkpoint.every_steps == 0)
        if checkpoint.every_minutes and self._rank == 0:
            save = save or self._is_time(60 * checkpoint.every_minutes)
        return float(save), float(self._beat.stop_requested or step + 1 == self._pause_after)

    def _is_time(self, every_s: float) -> bool:
        """By the clock of rank 0. Where a save takes longer than the interval, the interval is as long as the save: training would wait for each."""
        passed = time.monotonic() - self._saved_at
        if passed <= every_s or passed <= self._saver.took_s:
            return False
        if self._saver.busy:
            self._beat.tell_once(
                "slow saves", f"saves take longer than {every_s / 60:g} minutes (trainer.checkpoint.every_minutes): fewer are made"
            )
            return False
        return True

    def finished(self, step: int, step_s: float, loss: float, finite: bool) -> None:
        """Of every step, after it: limits, spikes, replicas."""
        self._times.append(step_s)
        self._steps_here += 1
        for graph in self._graphs.new():
            if self._rank == 0 and self._steps_here > _FIRST_STEPS:
                self._beat.tell(f"step {step + 1}, {step_s:.1f} s: compiled again: {graph}")
        if self._rank == 0 and not finite:
            self._beat.tell(
                f"step {step + 1}: the loss or a gradient is no number; the step was skipped on all ranks", key=self._key, step=step
            )
        if finite:
            if self._rank == 0 and len(self._losses) >= 5 and loss > _SPIKE * median(self._losses):
                self._beat.tell(
                    f"step {step + 1}: loss {loss:.3g} is {loss / median(self._losses):.0f} times the median", key=self._key, step=step
                )
            self._losses.append(loss)
            self._refuse_explosion(step, loss)
        every = self._config.watch.replicas_every_steps
        if hit("step.end") == "flip":
            next(iter(self._engine.module.parameters())).data.view(-1)[0] += 1.0
        if every and (step + 1) % every == 0:
            refuse_differences(self._engine.module, step)

    def _refuse_explosion(self, step: int, loss: float) -> None:
        """The loss is summed over ranks, so all of them end alike. A resumed stage compares with the first steps after its resume."""
        if self._explodes_at is None:
            return
        if len(self._first_losses) < _MEDIAN_OF:
            self._first_losses.append(loss)
            return
        now, first = median(list(self._losses)[-_MEDIAN_OF:]), median(self._first_losses)
        if now > self._explodes_at * first:
            raise RunError(
                f"the loss explodes: {now:.3g} at step {step + 1}, {now / first:.1f} times that of the first steps; lower the rate"
            )

    def compare(self, forward_s: float, wait_s: float, device: torch.device) -> dict[str, Any]:
        """Every ten steps the metrics of the rank that was slowest in them, by its own seconds a step; tells of a straggler once a stage.

        A collective, so all ranks call it at every step.
        """
        world_size = torch.distributed.get_world_size()
        if self._steps_here < _FIRST_STEPS or world_size == 1:  # caches fill, streams begin
            return {}
        self._forward_s, self._wait_s, self._compared = self._forward_s + forward_s, self._wait_s + wait_s, self._compared + 1
        if self._compared < _COMPARE_STEPS:
            return {}
        mine = torch.tensor([self._forward_s, self._wait_s], dtype=torch.float64, device=device) / self._compared
        self._forward_s, self._wait_s, self._compared = 0.0, 0.0, 0
        gathered = [torch.empty_like(mine) for _ in range(world_size)]
        torch.distributed.all_gather(gathered, mine)
        table = torch.stack(gathered).tolist()
        rank = max(range(world_size), key=lambda r: sum(table[r]))
        others = [sum(row) for r, row in enumerate(table) if r != rank]
        compute, wait = table[rank]
        excess = compute + wait - median(others)
        if excess > _STRAGGLER_S and compute + wait > _STRAGGLER * median(others) and self._rank == 0 and rank not in self._told_slow:
            self._told_slow.add(rank)
            what = "computes" if compute >= wait else "waits for data"
            self._beat.tell(
                f"rank {rank} is a straggler: it {what} {max(compute, wait):.2f} s a step, the others take {median(others):.2f} s in all"
            )
        return {"slowest_rank": rank, "slowest_compute_s": compute, "slowest_data_wait_s": wait}

    def save(self, next_step: int, totals: dict[str, Any], stop: bool) -> None:
        """All ranks together. Raises Stopped when it is the last one."""
        self._beat.enter("save", self._config.watch.save_s, next_step - 1)
        self._saver.save(next_step, self._engine.state_fragments(), {"totals": totals, "optimizer_steps": self._engine.optimizer_steps()})
        self._saved_at = time.monotonic()
        if stop:
            self._saver.wait()
        for notice in self._saver.notices:
            self._beat.tell(notice)
        self._saver.notices.clear()
        if stop:
            self._refuse_lost_save()
            raise Stopped(next_step)

    def _refuse_lost_save(self) -> None:
        """RunError on every rank where the last save failed on any: what was trained since the one before is lost, whoever asked for the end."""
        reasons: list[str | None] = [self._saver.failed]
        if torch.distributed.is_initialized():
            reasons = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(reasons, self._saver.failed)
        if why := next((reason for reason in reasons if reason), None):
            raise RunError(f"the last checkpoint before the end could not be saved: {why}; the one before it counts")

"""One micro-step and one optimiser step, without Ray: what a GPU box with torch alone can run and measure."""

import inspect
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data.rows.flat_rows import Row
from failpoints import hit
from trainer.kernels.linear_loss import head_gives, head_gives_loss, plain_head, tiny_row
from trainer.step.placing import model_inputs, placed

Draws = Callable[[Row], None]
"""Sets torch's generators for this row's micro-step."""


class Engine(Protocol):
    """What the loop needs of DeepSpeed (trainer/step/engine.py) or of plain torch (PlainEngine)."""

    module: torch.nn.Module
    device: torch.device

    def backward(self, loss: Tensor) -> None: ...

    def step(self, rate: float) -> float:
        """One optimiser step at this rate; returns the global gradient norm before clipping."""

    def forward(self, **inputs: Any) -> Any: ...


def row_loss(engine: Engine, row: Row, attention: str) -> Tensor:
    """Σ weight × nll over the row's targets: this row's share of the step's loss, a scalar tensor.

    Position t predicts token t + 1. Logits are made only where a target has weight (of a question, its answer), and only a few at a time
    where the model's head allows it (trainer/kernels/linear_loss.py). Targets that follow a teacher have their divergence from it added
    (trainer/kernels/taught_loss.py). On a GPU nothing here waits for the device.
    """
    here = placed(row, attention, engine.device)
    module = base_module(engine.module)
    head = plain_head(engine, module, lambda: model_inputs(tiny_row(), attention, engine.device))
    keeps = keeps_logits(type(module).forward)
    inputs = here.inputs | ({"logits_to_keep": here.predicting} if keeps else {})
    told = here.told
    if head is not None and told is not None:
        with head_gives(head, lambda hidden: told.loss(hidden, head, here.target, here.share), None if keeps else here.predicting):
            return engine.forward(**inputs).logits  # type: ignore[no-any-return]
    if head is not None:
        with head_gives_loss(head, here.target, here.share, None if keeps else here.predicting):
            return engine.forward(**inputs).logits  # type: ignore[no-any-return]
    logits = engine.forward(**inputs).logits[0]
    logits = (logits if keeps else logits[here.predicting]).float()
    loss = (cross_entropy(logits, here.target, reduction="none") * here.share).sum()
    return loss if told is None else loss + told.divergence(logits)


@lru_cache
def keeps_logits(forward: Callable[..., Any]) -> bool:
    """Whether a model's forward makes logits at given positions only."""
    return "logits_to_keep" in inspect.signature(forward).parameters


class Stopwatch:
    """Seconds of this rank's forward passes: work that waits for no other rank (under ZeRO 3 it gathers parameters)."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._laps: list[tuple[Any, Any]] = []

    def start(self) -> Any:
        return self._now()

    def stop(self, started: Any) -> None:
        self._laps.append((started, self._now()))

    def seconds(self) -> float:
        """Since the last call. On a GPU it waits for the last forward pass to end."""
        if self._on_gpu:
            torch.cuda.synchronize()
            total = sum(a.elapsed_time(b) for a, b in self._laps) / 1000
        else:
            total = sum(b - a for a, b in self._laps)
        self._laps = []
        return float(total)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def optimiser_step(
    engine: Engine,
    rows: list[Row],
    rate: float,
    attention: str,
    stopwatch: Stopwatch | None = None,
    draw: Draws = lambda row: None,
) -> tuple[Tensor, float]:
    """All micro-steps of one optimiser step on this rank: (this rank's share of the loss, global gradient norm).

    `draw`: sets what is drawn at random in a row's micro-step (trainer/step/randomness.py).

    A share that is no number makes the gradients no number too, and engines skip a step whose norm is none: the norm is over all
    ranks, so all skip alike, whichever rank saw it and whatever gradient (an infinite loss can have a finite one) came with it.
    """
    total = torch.zeros((), device=engine.device)
    for row in rows:
        started = stopwatch.start() if stopwatch else None
        draw(row)
        loss = row_loss(engine, row, attention)
        hit("step.forward")
        if stopwatch:
            stopwatch.stop(started)
        if (planted := hit("step.loss")) in ("nan", "inf"):
            loss = loss + float(planted)  # an infinite loss whose gradient is finite
        elif planted == "spike":
            loss = loss * 100
        engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan")))
        total += loss.detach()
        hit("step.backward")
    return total, engine.step(rate)


def base_module(module: torch.nn.Module) -> torch.nn.Module:
    return getattr(module, "module", module)

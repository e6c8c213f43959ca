"""One micro-step and one optimiser step, without Ray: what a GPU box with torch alone can run and measure."""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data.rows import Row
from trainer.attention import attention_inputs


class Engine(Protocol):
    """What the loop needs of DeepSpeed (trainer/engine.py) or of plain torch (PlainEngine)."""

    module: torch.nn.Module
    device: torch.device

    def backward(self, loss: Tensor) -> None: ...

    def step(self, rate: float) -> float:
        """One optimiser step at this rate; returns the global gradient norm before clipping."""

    def forward(self, **inputs: Any) -> Any: ...


def row_loss(engine: Engine, row: Row, attention: str) -> Tensor:
    """Σ weight × nll over the row's targets: this row's share of the step's loss, a scalar tensor.

    Position t predicts token t + 1. Logits are made only where a target has weight: of a question, its answer.
    """
    input_ids = torch.as_tensor(row["input_ids"], device=engine.device)  # (T,)
    weight = torch.as_tensor(row["loss_weight"], device=engine.device)[1:]  # (T - 1,), of the target
    predicting = weight.nonzero()[:, 0]
    if len(predicting) == 0:  # filler: one logit keeps every rank in the same collectives
        predicting = torch.zeros(1, dtype=torch.long, device=engine.device)
    keeps = "logits_to_keep" in inspect.signature(_base_module(engine.module).forward).parameters
    logits = engine.forward(
        input_ids=input_ids[None],
        position_ids=torch.as_tensor(row["position_ids"], device=engine.device)[None],
        use_cache=False,
        **({"logits_to_keep": predicting} if keeps else {}),
        **attention_inputs(attention, row["cu_seqlens"], engine.device),
    ).logits[0]
    if not keeps:
        logits = logits[predicting]
    target_ids = torch.as_tensor(row["target_ids"], device=engine.device) if "target_ids" in row else input_ids  # apart under input noise
    nll = cross_entropy(logits.float(), target_ids[1:][predicting], reduction="none")
    return (nll * weight[predicting]).sum()


def optimiser_step(engine: Engine, rows: list[Row], rate: float, attention: str) -> tuple[Tensor, float]:
    """All micro-steps of one optimiser step on this rank: (this rank's share of the loss, global gradient norm)."""
    total = torch.zeros((), device=engine.device)
    for row in rows:
        loss = row_loss(engine, row, attention)
        engine.backward(loss)
        total += loss.detach()
    return total, engine.step(rate)


def _base_module(module: torch.nn.Module) -> torch.nn.Module:
    return getattr(module, "module", module)

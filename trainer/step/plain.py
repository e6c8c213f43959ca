"""The same optimiser step in plain torch, one process: the oracle of the numerics tests, and the fastest way to try something."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.network.model import matrices_and_rest


class PlainEngine:
    def __init__(
        self,
        module: torch.nn.Module,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
        adamw: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    ) -> None:
        """`adamw`: another AdamW with torch's arguments, e.g. one with low-precision states."""
        self.module = module
        self.device = next(module.parameters()).device
        self._clip = clip
        decayed, rest = matrices_and_rest(module)
        self._optimizer = adamw(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=0.0, betas=betas
        )

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._clip or float("inf"))
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

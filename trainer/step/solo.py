"""One process in fp32: there is nothing to partition, so plain torch does the step. Its checkpoints are those of every other engine.

DeepSpeed would copy each gradient into a bucket, divide it by one rank, copy it back and flatten it, and copy the masters to equal weights: benchmarks/steps/real_step.py measures
both. In bf16 it is needed for its fp32 masters and sums.
"""

import gc
import math
from typing import Any

import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.jobs.worker_settings import Precision
from trainer.kernels.adamw import CutFreeAdamW
from trainer.network.model import matrices_and_rest
from trainer.step.engine import DeepSpeedEngine


class SoloEngine(DeepSpeedEngine):
    """As DeepSpeedEngine under ZeRO 0: whole parameters, whole moments."""

    def __init__(self, module: torch.nn.Module, config: TrainerConfig, device: torch.device, saves_frozen: bool = True) -> None:
        decayed, rest = matrices_and_rest(module)
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self._adamw = CutFreeAdamW([g for g in groups if g["params"]], lr=0.0, betas=config.betas, on_cpu=device.type == "cpu")
        self.module, self.device, self.zero_stage = module, device, 0
        self._saves_frozen, self._world_size, self._clip = saves_frozen, 1, config.clip

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, rate: float) -> float:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        gradients = [p.grad for group in self._adamw.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            self._adamw.divisor = max(1.0, (norm + 1e-6) / self._clip) if self._clip else 1.0
            self._adamw.step()
        self._adamw.zero_grad()
        return norm

    def close(self) -> None:
        del self.module, self._adamw
        gc.collect()


def as_run(config: TrainerConfig, precision: Precision) -> TrainerConfig:
    """The settings of the engine that is fastest here: of one process in fp32 nothing is sharded, whatever ZeRO stage is asked for."""
    return config.model_copy(update={"zero_stage": 0}) if _solo(config, precision) else config


def engine_of(
    module: torch.nn.Module, config: TrainerConfig, precision: Precision, device: torch.device, saves_frozen: bool = True
) -> DeepSpeedEngine:
    """An engine for settings that `as_run` gave."""
    if _solo(config, precision):
        return SoloEngine(module, config, device, saves_frozen)
    return DeepSpeedEngine(module, config, precision, device, saves_frozen)


def _solo(config: TrainerConfig, precision: Precision) -> bool:
    return torch.distributed.get_world_size() == 1 and precision == "fp32" and not config.offload_optimizer

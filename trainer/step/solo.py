"""One process: there is nothing to partition, so plain torch does the step. Its checkpoints are those of every other engine.

In fp32 DeepSpeed would copy each gradient into a bucket, divide it by one rank, copy it back and flatten it, and copy the masters to equal weights:
benchmarks/steps/real_step.py measures both. In bf16 its ZeRO 1 asks for as much as this does (dev/LOG.md), but rounds the sums, and ZeRO 3 gathers what is whole.
"""

import gc
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.jobs.worker_settings import Precision
from trainer.kernels.adamw import CutFreeAdamW
from trainer.kernels.wide_sums import widen_sums
from trainer.network.model import matrices_and_rest
from trainer.step.engine import DeepSpeedEngine

_APART = 16
"""Elements of fp32, a cache line: where parameters begin in what holds several of them."""
_TOGETHER = 2**28
"""Elements: AdamW's temporaries on GPUs are as large as what it is given at once; a GB."""


class SoloEngine(DeepSpeedEngine):
    """In fp32. As DeepSpeedEngine under ZeRO 0: whole parameters, whole moments."""

    def __init__(self, module: torch.nn.Module, config: TrainerConfig, device: torch.device, saves_frozen: bool = True) -> None:
        self.module, self.device, self.zero_stage = module, device, 0
        self._saves_frozen, self._world_size, self._clip = saves_frozen, 1, config.clip
        groups = [
            {"params": given, "weight_decay": decay}
            for parameters, decay in zip(matrices_and_rest(module), (config.weight_decay, 0.0), strict=True)
            for given in self._optimised(parameters)
        ]
        self._adamw = CutFreeAdamW(groups, lr=0.0, betas=config.betas, on_cpu=device.type == "cpu")

    def _optimised(self, parameters: list[torch.nn.Parameter]) -> Iterator[list[Tensor]]:
        """Groups of what AdamW is given for them."""
        if parameters:
            yield list(parameters)

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, rate: float) -> float:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._pull_at(rate)
        norm = float(torch.nn.utils.get_total_norm(self._gradients()))
        if math.isfinite(norm):
            self._adamw.divisor = max(1.0, (norm + 1e-6) / self._clip) if self._clip else 1.0
            self._adamw.step()
        self._forget_gradients()
        return norm

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self._adamw.param_groups for p in group["params"] if p.grad is not None]

    def _forget_gradients(self) -> None:
        self._adamw.zero_grad()

    def close(self) -> None:
        del self.module, self._adamw
        self.pull = None
        gc.collect()


class MastersEngine(SoloEngine):
    """In bf16 with fp32 masters, and gradients summed in fp32: to the bit DeepSpeed's ZeRO 1 (tests/numerics/test_zero.py), but that the sums are not rounded to bf16,
    in which DeepSpeed's bucket hands them on.

    Masters, sums and moments of many parameters are one tensor, so that a step is a few kernels whatever the network's depth; a gradient is added to its sum by one, as soon as it is
    there, and dropped. Bytes a parameter: weight 2, master 4, sum 4, moments 8.
    """

    def __init__(self, module: torch.nn.Module, config: TrainerConfig, device: torch.device, saves_frozen: bool = True) -> None:
        if device.type == "cpu":
            widen_sums()
        self._masters: dict[Tensor, tuple[Tensor, int]] = {}  # parameter → the tensor with its master, and where it begins there
        super().__init__(module, config, device, saves_frozen)
        for parameter in module.parameters():  # buffers stay as they are, as DeepSpeed leaves them
            if parameter.dtype is torch.float32:
                parameter.data = parameter.data.bfloat16()
        self._sums = [self._within(master.grad, parameter, begin) for parameter, (master, begin) in self._masters.items()]  # type: ignore[arg-type]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(_adding_to(total.view_as(parameter)))
            for parameter, total in zip(self._masters, self._sums, strict=True)
        ]

    def _optimised(self, parameters: list[torch.nn.Parameter]) -> Iterator[list[Tensor]]:
        while parameters:
            begins, end = [0], 0
            for parameter in parameters:
                if end and end + parameter.numel() > _TOGETHER:
                    break
                end += -(-parameter.numel() // _APART) * _APART
                begins.append(end)
            together, parameters = parameters[: len(begins) - 1], parameters[len(begins) - 1 :]
            master = torch.zeros(end, device=self.device)
            master.grad = torch.zeros_like(master)
            for parameter, begin in zip(together, begins, strict=False):
                self._masters[parameter] = master, begin
                self._within(master, parameter, begin).copy_(parameter.detach().view(-1))
            yield [master]

    def step(self, rate: float) -> float:
        norm = super().step(rate)
        if math.isfinite(norm):
            self._round_masters()
        return norm

    def set_fp32(self, whole: Callable[[str], Tensor], share: Callable[[str], Tensor] | None = None) -> None:
        for name, parameter in self.module.named_parameters():
            if parameter in self._masters:
                self._whole(parameter, "weight").copy_(whole(name).flatten())
        self._round_masters()

    @torch.no_grad()
    def _round_masters(self) -> None:
        masters = [self._within(master, parameter, begin).view_as(parameter) for parameter, (master, begin) in self._masters.items()]
        torch._foreach_copy_(list(self._masters), masters)

    def _gradients(self) -> list[Tensor]:
        return self._sums  # by parameter: what one sum of squares of all would lose

    def _forget_gradients(self) -> None:
        for group in self._adamw.param_groups:
            group["params"][0].grad.zero_()

    def _whole(self, parameter: Tensor, kind: str) -> Tensor:
        if parameter not in self._masters:
            return super()._whole(parameter, kind)
        master, begin = self._masters[parameter]
        return self._within(master if kind == "weight" else self._adamw.state[master][kind], parameter, begin)

    @staticmethod
    def _within(values: Tensor, parameter: Tensor, begin: int) -> Tensor:
        return values.detach()[begin : begin + parameter.numel()]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        del self._masters, self._sums, self._hooks
        super().close()


def _adding_to(total: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        total.add_(parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None

    return add


def as_run(config: TrainerConfig, precision: Precision, adapter: bool = False, processes: int | None = None) -> TrainerConfig:
    """The settings of the engine that is fastest here: of one process nothing is sharded, whatever ZeRO stage is asked for. `processes`: of the group, where it is not there yet.

    But ZeRO-3 of an `adapter` in bf16 stays: it builds the frozen network in bf16, where others build it in fp32 first, which may not fit.
    """
    if not _alone(config, processes) or (adapter and precision == "bf16" and config.zero_stage == 3):
        return config
    return config.model_copy(update={"zero_stage": 0 if precision == "fp32" else 1})


def engine_of(
    module: torch.nn.Module, config: TrainerConfig, precision: Precision, device: torch.device, saves_frozen: bool = True
) -> DeepSpeedEngine:
    """An engine for settings that `as_run` gave."""
    if _alone(config) and config.zero_stage < 3:
        return (SoloEngine if precision == "fp32" else MastersEngine)(module, config, device, saves_frozen)
    return DeepSpeedEngine(module, config, precision, device, saves_frozen)


def _alone(config: TrainerConfig, processes: int | None = None) -> bool:
    return (processes or torch.distributed.get_world_size()) == 1 and not config.offload_optimizer

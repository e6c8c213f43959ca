"""AdamW whose bits do not depend on where a tensor is cut, by torch's fused kernel: a resume at another world size goes on with the same ones.

On CPUs the fused kernel is four times as fast as torch's loop over operations, but computes the last elements of a tensor, those beyond its vector registers, by other
instructions: 1,000 elements cut at 333 differ from the uncut run. Here it is handed whole registers only: what is left at the end of a tensor is computed in a buffer of
its own that is filled up. Then every element goes through the same instructions, however ZeRO has cut (tests/numerics/kernels/test_adamw.py, down to cuts of one element).
On GPUs torch's foreach kernels, which compute each element alike, until the fused one has been measured there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WHOLE = 16
"""Elements: fp32 numbers of the widest vector registers there are (AVX-512), and of a cache line, at which torch divides a tensor among threads."""


class CutFreeAdamW(torch.optim.AdamW):
    """torch's AdamW, its state and its arguments; all parameters on one device, in fp32 where that is a CPU."""

    divisor: float = 1.0
    """Of all gradients, for the next step: clipping takes no pass of its own where the kernel divides on its way."""
    first: Callable[[], None] | None = None
    """Done once, before the next step changes anything; ZeRO asks for a step in several parts, and for none, or one without gradients, where one is no number."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], on_cpu: bool) -> None:
        super().__init__(params, lr=lr, betas=betas, fused=False, foreach=not on_cpu)
        self._on_cpu = on_cpu

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        if self.first and any(parameter.grad is not None for group in self.param_groups for parameter in group["params"]):
            first, self.first = self.first, None
            first()
        if not self._on_cpu:
            if self.divisor != 1:
                torch._foreach_div_([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None], self.divisor)
            super().step()
            return
        for group in self.param_groups:
            tensors, steps = [], []
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self._state_of(parameter)
                    state["step"] += 1
                    gradient = (
                        parameter.grad.contiguous()
                    )  # the kernel goes by places in memory (findings/fused_optimisers_on_cpu_take_gradients_in_memory_order.sh)
                    tensors.append([_whole_or_flat(x) for x in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])])
                    steps.append(state["step"])
            if tensors:
                _fused(tensors, steps, group, self.divisor)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        return state


def _whole_or_flat(tensor: Tensor) -> Tensor:
    """What the kernel can take as it stands stays as it is: a view of each matrix, and a slice of it, were most of what a step of many small ones asked for."""
    return tensor if tensor.numel() % _WHOLE == 0 and tensor.is_contiguous() else tensor.view(-1)


def _fused(tensors: list[list[Tensor]], steps: list[Tensor], group: dict[str, Any], divisor: float) -> None:
    """`tensors`: of each parameter its weights, gradient and moments; flat where their size is no multiple of _WHOLE."""
    whole, whole_steps, rests = [], [], []
    for flat, step in zip(tensors, steps, strict=True):
        if flat[0].numel() % _WHOLE == 0:
            whole.append(flat)
            whole_steps.append(step)
            continue
        end = len(flat[0]) // _WHOLE * _WHOLE
        if end:
            whole.append([x[:end] for x in flat])
            whole_steps.append(step)
        rest = [x[end:] for x in flat]
        filled = [torch.nn.functional.pad(x, (0, _WHOLE - len(x))) for x in rest]
        whole.append(filled)
        whole_steps.append(step)
        rests.append((rest, filled))
    weights, gradients, first, second = (list(kind) for kind in zip(*whole, strict=True))
    torch._fused_adamw_(
        weights, gradients, first, second, [], whole_steps,
        lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False, grad_scale=torch.tensor(divisor) if divisor != 1 else None, found_inf=None,
    )  # fmt: skip
    for rest, filled in rests:
        for own, computed in zip(rest, filled, strict=True):
            own.copy_(computed[: len(own)])

"""AdamW for weights that are kept in bf16 and still learn at a rate of 5e-6.

A bf16 weight has 8 bits: at such rates nine of ten updates are smaller than half its last bit and are rounded away (dev/LOG.md: 92 % of the weights
never move). Here what rounding takes off a weight is kept in a second bf16 number and added at the next step (Kahan's compensation): together they hold
16 bits, and the update is computed in fp32 from their sum. Stochastic rounding needs no second number, but adds noise as large as the update itself
(tests/numerics/kernels/test_compensated.py holds both against fp32). Bytes a parameter: weight 2, gradient 2, remainder 2, moments 4 in bf16 or 2 in 8 bits,
where mixed precision has 16 to 18.

A step goes over a parameter once, piece by piece: what it computes in fp32 is as large as a piece, not as an embedding of half a billion weights (six fp32 numbers each, and
torchao's 8-bit moments are made by way of 64-bit integers).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_PIECE = {"cpu": 2**16, "cuda": 2**24}
"""Elements; on CPUs a piece's numbers stay in the cache, on GPUs launches of kernels for a piece take less time than the kernels. Whole blocks of 8-bit moments (256), and
whole vector registers: every element goes through the instructions that it would go through in one piece."""


class CompensatedAdamW(torch.optim.Optimizer):
    """torch.optim.AdamW's mathematics (decoupled decay, bias correction) with low-precision states; takes its groups and arguments."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        moment: Callable[[Tensor, bool], Tensor] | None = None,
    ) -> None:
        """`moment(parameter, signed)` → zeros that hold a moment and take `.view(-1)`, slices from a multiple of 256 to another or to the end, and these `.float()` and `.copy_()`;
        default: like the parameter.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._moment = moment or (lambda parameter, signed: torch.zeros_like(parameter))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(step=0, rest=torch.zeros_like(parameter))
                    state.update(exp_avg=self._moment(parameter, True), exp_avg_sq=self._moment(parameter, False))
                state["step"] += 1
                _update(parameter, parameter.grad, state, group)


def _update(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    flat = [x.view(-1) for x in (parameter, gradient.contiguous(), state["rest"], state["exp_avg"], state["exp_avg_sq"])]
    length = _PIECE.get(parameter.device.type, _PIECE["cuda"])
    for start in range(0, parameter.numel(), length):
        end = min(start + length, parameter.numel())
        _update_piece([x[start:end] for x in flat], state["step"], group)


def _update_piece(flat: list[Tensor], step: int, group: dict[str, Any]) -> None:
    """`flat`: of these elements their weights, gradient, remainder and moments."""
    parameter, gradient, rest, first_moment, second_moment = flat
    first, second = group["betas"]
    exp_avg = first_moment.float().lerp(gradient.float(), 1 - first)
    exp_avg_sq = second_moment.float().lerp(gradient.float().square(), 1 - second)
    first_moment.copy_(exp_avg)
    second_moment.copy_(exp_avg_sq)
    weight = parameter.float() + rest.float()
    weight *= 1 - group["lr"] * group["weight_decay"]
    spread = exp_avg_sq.div_(1 - second**step).sqrt_().add_(group["eps"])
    weight -= exp_avg.div_(spread).mul_(group["lr"] / (1 - first**step))
    parameter.copy_(weight)
    rest.copy_(weight.sub_(parameter.float()))

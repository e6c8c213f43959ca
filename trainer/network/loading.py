"""Weights from disk into a network, by all ranks together."""

from math import prod
from typing import Any

import torch

from console import UserError
from trainer.network.buffers import buffers, set_buffer
from trainer.store.shares import Shares
from trainer.store.weights import Weights


def load_into(module: torch.nn.Module, weights: Weights, zero_stage: int = 0, shares: Shares | None = None) -> None:
    """Copies every parameter and what belongs to the model beside them (trainer/network/buffers.py) from `weights`. By all ranks together, each of which reads
    its share (trainer/store/shares.py) and under ZeRO-3 needs no more.

    `shares`: of these weights. UserError where a parameter has no counterpart: the model would start half random.
    """
    available = set(weights.names())
    beside = buffers(module)
    if missing := [name for name in (*(name for name, _ in module.named_parameters()), *beside) if name not in available]:
        what = "buffers" if missing[0] in beside else "parameters"
        raise UserError(f"the weights lack {len(missing)} of the model's {what}, {missing[0]} first; is it the same architecture?")
    for name in beside:
        set_buffer(module, name, weights.read(name))
    shares = shares or Shares(weights)
    for name, parameter in module.named_parameters():
        if zero_stage == 3:
            there: Any = parameter
            assert prod(weights.shape(name)) == there.ds_numel, (
                f"{name}: {weights.shape(name)} in the weights, {tuple(there.ds_shape)} here"
            )
            values = shares.share(name)
            there.ds_tensor.data.view(-1)[: values.numel()].copy_(values)
        else:
            parameter.data.copy_(shares.whole(name, parameter.device).view(parameter.shape))

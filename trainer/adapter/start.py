"""What an adapter starts from on one rank, under every ZeRO stage alike: peft's own draws in fp32, or a checkpoint's values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from data.ground.adapters import Adapter
from trainer.adapter.adapter import inject, trained_parameters
from trainer.store.weights import Weights


def put_in(
    module: torch.nn.Module, adapter: Adapter, seed: int, number: int, parent: Weights, saved: Weights | None, dtype: torch.dtype
) -> "Starts":
    """Puts the adapter into a model that holds its parent's weights; what is trained gets its start, of which the fp32 values come back.

    Under ZeRO-3 (the model's parameters are partitioned) with `dtype`, for DeepSpeed rounds no model that was sharded as it was built.
    """
    partitioned = {id(parameter) for parameter in module.parameters() if hasattr(parameter, "ds_shape")}
    with _shown_whole(module):
        inject(module, adapter, seed, number)
    if partitioned:
        _measure_magnitudes(module, parent)
    trained = trained_parameters(module)
    if saved:
        for name, parameter in trained.items():
            _set(parameter, saved.read(name))
    starts = Starts({name: p.detach().float().clone() for name, p in trained.items() if id(p) not in partitioned}, saved or parent)
    for name in starts.drawn() if partitioned else ():
        trained[name].data = trained[name].data.to(dtype)
    return starts


class Starts:
    """fp32 values of what an adapter's stage trains, before an engine in bf16 rounds them."""

    def __init__(self, drawn: dict[str, Tensor], others: Weights) -> None:
        """`others`: where the model's own parameters (biases) are that no rank holds whole."""
        self._drawn, self._others = drawn, others

    def drawn(self) -> list[str]:
        return list(self._drawn)

    def read(self, name: str) -> Tensor:
        if name in self._drawn:
            return self._drawn[name]
        return self._others.read(name if name in self._others.names() else name.replace("base_layer.", ""))


@contextmanager
def _shown_whole(module: torch.nn.Module) -> Iterator[None]:
    """While this is open partitioned parameters show their whole shape, in fp32, and zeros (one number of memory each).

    peft takes shapes and the precision of its draws from there; the values it looks at for DoRA alone.
    """
    partitioned: list[Any] = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_shape")]
    kept = [parameter.data for parameter in partitioned]
    for parameter in partitioned:
        parameter.data = torch.zeros((), device=parameter.device).expand(tuple(parameter.ds_shape))
    try:
        yield
    finally:
        for parameter, data in zip(partitioned, kept, strict=True):
            parameter.data = data


def _measure_magnitudes(module: torch.nn.Module, parent: Weights) -> None:
    """DoRA's start, the norms of the unrounded weights: ranks read them in turn, a module at a time, and all get the norms."""
    owner = 0
    for path, layer in module.named_modules():
        for name, magnitude in (getattr(layer, "lora_magnitude_vector", None) or {}).items():
            base: Any = layer.get_base_layer()
            a, b = (layer.lora_A, layer.lora_B) if name in layer.lora_A else (layer.lora_embedding_A, layer.lora_embedding_B)
            kept = base.weight.data
            if torch.distributed.get_rank() == owner:
                base.weight.data = parent.read(f"{path}.weight").float().to(kept.device)
                factors = [getattr(part[name], "weight", part[name]).detach() for part in (a, b)]
                magnitude.update_layer(base_layer=base, lora_A=factors[0], lora_B=factors[1], scaling=layer.scaling[name])
                base.weight.data = kept
            torch.distributed.broadcast(magnitude.weight.data, owner)
            owner = (owner + 1) % torch.distributed.get_world_size()


def _set(parameter: Any, value: Tensor) -> None:
    if not hasattr(parameter, "ds_shape"):
        parameter.data.copy_(value)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)

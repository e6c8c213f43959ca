"""ZeRO-3 by whole layers: DeepSpeed gathers a decoder layer at once and computes it undivided.

Without this DeepSpeed puts an identity function of autograd before and behind every module, which regroups the sums of gradients where paths meet (at each norm and
residual): the numbers are then another rounding of plain torch's. With layers as leaves they are plain torch's to the last bit (tests/parity; Mamba's within 1e-6), and a layer can be compiled
whole. It costs one layer gathered at a time instead of one matrix.
"""

from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_module

from trainer.kernels.layers import inner_layers


def layers_as_leaves(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Marks the model's layers, by transformers' own list of what must not be split, and returns them. To be called before DeepSpeed wraps the model.

    DeepSpeed takes a leaf's gradients when autograd has come through the leaf to its input. Where the input needs no gradient (all before it is frozen, as beside an
    adapter) that moment comes before the gradients do and they would be lost: the input is made to need one.
    """
    leaves = inner_layers(module)
    for leaf in leaves:
        set_z3_leaf_module(leaf, True)
    network: Any = module
    if leaves and not any(parameter.requires_grad for parameter in network.get_input_embeddings().parameters()):
        network.enable_input_require_grads()
    return leaves


class NoLateGradients:
    """Watches one backward pass: AssertionError when a gradient of a leaf comes after DeepSpeed has taken the leaf's gradients, for it would be lost without a word."""

    def __init__(self, leaves: list[torch.nn.Module]) -> None:
        taken: set[int] = set()
        self._handles: list[Any] = []
        for number, leaf in enumerate(leaves):
            self._handles.append(leaf.register_full_backward_hook(lambda *_, number=number: taken.add(number)))
            for name, parameter in leaf.named_parameters():
                if parameter.requires_grad:
                    late = f"{type(leaf).__name__}.{name}: its gradient comes after its layer's were taken"
                    self._handles.append(parameter.register_post_accumulate_grad_hook(_refuse(taken, number, late)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _refuse(taken: set[int], number: int, late: str) -> Any:
    def hook(_: torch.Tensor) -> None:
        assert number not in taken, late

    return hook

"""bf16 on CPUs: torch's kernels that add many numbers there in bf16 are given fp32 instead.

A bf16 sum stands still once it is 256 times as large as what is added. So a token that occurs a thousand times in a row got the embedding gradient of
some 256 occurrences, and LayerNorm's bias a tenth of its gradient (all other reductions of models were measured and are right, and so are GPUs:
docs/models.md). Each kernel below is called with fp32 copies of its bf16 tensors and its result is rounded once; the forward pass is untouched.
It costs an fp32 copy of the gradient for as long as the kernel runs. It is torch's own kernel that is replaced, for the whole process: then it
does not matter which module, adapter or library asks for the sum, nor under which ZeRO stage or checkpointing.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_Arguments = tuple[Any, ...]
_SUMS: dict[str, Callable[[_Arguments], bool]] = {
    "embedding_dense_backward": lambda _: True,  # of token tables and learned positions
    "native_layer_norm_backward": lambda _: True,
    "_index_put_impl_": lambda arguments: (
        len(arguments) > 3 and arguments[3]
    ),  # weight[index]: biases of experts, tables; only where it adds
    "put_": lambda arguments: len(arguments) > 3 and arguments[3],  # of take
    "index_add_": lambda arguments: arguments[0].dim() != 2,  # of index_select; rows of a matrix are summed rightly
}
"""Operator → whether it adds in bf16, by its arguments. A name that ends in _ changes its first one in place."""

_library: torch.library.Library | None = None  # kernels are replaced as long as it lives


def widen_sums() -> None:
    """Replaces the kernels of this process, once. On GPUs, and for other dtypes, nothing changes."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced
        for name, adds in _SUMS.items():
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            _library.impl(name, _widened(kernel.call_boxed, adds, name.endswith("_")), "CPU", with_keyset=True)


def _widened(kernel: Callable[..., Any], adds: Callable[[_Arguments], bool], in_place: bool) -> Callable[..., Any]:
    def run(keys: Any, *arguments: Any, **named: Any) -> Any:
        if not (any(map(_is_bf16, arguments)) and adds(arguments)):
            return kernel(keys, *arguments, **named)
        wide = [argument.float() if _is_bf16(argument) else argument for argument in arguments]
        result = kernel(keys, *wide, **named)
        if in_place:
            return arguments[0].copy_(wide[0])
        return tuple(map(_narrow, result)) if isinstance(result, tuple) else _narrow(result)

    return run


def _is_bf16(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dtype is torch.bfloat16


def _narrow(result: Tensor | None) -> Tensor | None:
    return None if result is None else result.bfloat16()

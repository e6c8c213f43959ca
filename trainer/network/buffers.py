"""What a model keeps beside its parameters: routers' corrections, layer scalars, token tables; and constants that the library makes.

What belongs to a model travels with its weights, by name: in the network and in fragments as fp32, which no engine rounds, in hf/ in the
dtype of the files it came from. No family of transformers 5.19 changes it in training; one that did would be saved as training left it.
Constants follow from the config: the model folder's files hold them, or the library makes them. They lie in no fragment.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from console import UserError

if TYPE_CHECKING:
    from trainer.store.weights import FolderWeights, Weights

_CONSTANT = re.compile(
    r"(?:^|\.)(?:slope_rate|query_decay|key_decay|diagonal_decay|act_fn\.beta|act_fn\.eps|\w*inv_freq"
    r"|layer_multipliers|ngram_heads_vocab_sizes|ngram_heads_offsets)$"
)
"""By the ends of names: MiniMax's slopes, Apertus' activation, rotary tables; the hashes of n-grams in Qwen 4's preview."""
_EXACT = 2**24
"""Whole numbers below it are fp32 numbers."""


def buffers(module: torch.nn.Module, constant: bool = False) -> dict[str, Tensor]:
    """The persistent buffers that belong to the model, by name; or those that are constants."""
    return {name: part._buffers[key] for name, part, key in _persistent(module) if bool(_CONSTANT.search(name)) == constant}


def set_buffer(module: torch.nn.Module, name: str, value: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Puts the value in the buffer's place, whatever dtype the engine or a default gave it; numbers with a point in `dtype`."""
    path, _, key = name.rpartition(".")
    part = module.get_submodule(path)
    there: Any = part._buffers[key]
    dtype = dtype if there.is_floating_point() else there.dtype
    part._buffers[key] = value.to(device=there.device, dtype=dtype, copy=True).reshape(there.shape)


def _persistent(module: torch.nn.Module) -> Iterator[tuple[str, Any, str]]:
    for path, part in module.named_modules():
        for key, value in part._buffers.items():
            if value is not None and key not in part._non_persistent_buffers_set:
                yield f"{path}.{key}".removeprefix("."), part, key


class With:
    """Weights, and beside or instead of them some tensors in memory."""

    def __init__(self, weights: "Weights", tensors: dict[str, Tensor]) -> None:
        self._weights, self._tensors = weights, tensors

    def names(self) -> list[str]:
        return [*(name for name in self._weights.names() if name not in self._tensors), *self._tensors]

    def shape(self, name: str) -> list[int]:
        return list(self._tensors[name].shape) if name in self._tensors else self._weights.shape(name)

    def read(self, name: str) -> Tensor:
        return self._tensors[name] if name in self._tensors else self._weights.read(name)

    def slice(self, name: str, start: int, end: int) -> Tensor:
        return self._tensors[name].flatten()[start:end] if name in self._tensors else self._weights.slice(name, start, end)


def read_buffers(network: Any, files: "FolderWeights") -> dict[str, Tensor]:
    """What belongs to the model of `network` (on the meta device), as the files have it. UserError where they lack it, or it cannot be carried."""
    wanted = buffers(network)
    place = names_in_files(network, wanted, files.names())
    if lost := sorted(wanted.keys() - place.keys()):
        raise UserError(
            f"{files.folder}: the weights lack {len(lost)} of the model's buffers, {lost[0]} first: it belongs to the model, and training "
            "would begin without it; is the folder whole, and the same architecture?"
        )
    found = {name: files.read(stored) for name, stored in place.items()}
    for name, value in found.items():
        if not _is_exact(value):
            raise UserError(f"{files.folder}: {name} is a buffer of {value.dtype} with values that fp32 cannot hold: not supported")
    return found


def _is_exact(value: Tensor) -> bool:
    """Whether fp32 holds all of it."""
    if value.is_floating_point() or value.is_complex():
        return value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return not value.numel() or int(value.abs().max() if value.dtype != torch.bool else 0) <= _EXACT


def read_constants(network: Any, files: "FolderWeights") -> dict[str, Tensor]:
    """The constants as the files have them; what they lack as the library makes it, in fp32."""
    wanted = buffers(network, constant=True)
    place = names_in_files(network, wanted, files.names())
    found = {name: files.read(stored) for name, stored in place.items()}
    return {**(_made(network) if wanted.keys() - found.keys() else {}), **found}


def _made(network: Any) -> dict[str, Tensor]:
    """As the architecture makes them in fp32; its parameters take no memory."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights(), init_empty_weights(include_buffers=False):
        return buffers(AutoModelForCausalLM.from_config(network.config, dtype=torch.float32), constant=True)


def names_in_files(network: Any, wanted: dict[str, Tensor], files: list[str]) -> dict[str, str]:
    """Network's name → the files' name of the same tensor, by transformers' own renaming; without what the files lack."""
    if wanted.keys() <= set(files):
        return {name: name for name in wanted}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    changes = get_model_conversion_mapping(network)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    there, prefix = network.state_dict(), network.base_model_prefix
    found = {rename_source_key(stored, renamings, converters, prefix, there)[0]: stored for stored in sorted(files)}
    return {name: found[name] for name in wanted if name in found}

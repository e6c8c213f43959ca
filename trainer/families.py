"""What differs between families of models: which attention is theirs, whether they have state-space layers, how their files are laid out."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from console import UserError
from trainer.attention import choose_attention
from trainer.weights import FolderWeights, Weights

_KERNELS = ("mamba_ssm", "causal_conv1d")


def attention_for(config: Any, wanted: str, device: torch.device, precision: str) -> str:
    """trainer.attention resolved for this model: eager where torch's kernel would leave out a soft cap (Gemma 2) or there is none (Mamba).

    UserError where the experiment names one that would compute something else.
    """
    chosen = choose_attention(wanted, config.model_type, getattr(config, "sliding_window", None), device, precision)
    architecture: Any = AutoModelForCausalLM._model_mapping[type(config)]
    capped = getattr(config, "attn_logit_softcapping", None)
    if chosen in ("sdpa", "padded_sdpa", "varlen") and (capped or not architecture._supports_sdpa):
        if wanted != "auto":
            why = f"leaves out its soft cap of {capped:g}" if capped else "has no place in it"
            raise UserError(f"trainer.attention: {wanted} {why} (model_type {config.model_type}); use auto or eager")
        return "eager"
    return chosen


def has_state_space(module: torch.nn.Module) -> bool:
    """Whether the model has layers that carry a state along the row (Mamba and its hybrids)."""
    return any(name.rpartition(".")[2] == "A_log" for name, _ in module.named_parameters())


def refuse_buffers(module: torch.nn.Module) -> None:
    """UserError for a model that keeps state beside its parameters (DeepSeek-V3's routing biases): it would be lost."""
    for path, part in module.named_modules():
        if kept := [name for name in part._buffers if name not in part._non_persistent_buffers_set]:
            raise UserError(
                f"model: {path}.{kept[0]} is state that is no parameter; it would be neither trained nor exported: not supported"
            )


def kernels_in_words() -> str:
    """Of state-space layers: what computes them here."""
    missing = [name for name in _KERNELS if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} cannot be imported, so transformers' own path" if missing else "kernels of mamba_ssm and causal_conv1d"


def tell_items_to_kernels(module: torch.nn.Module) -> None:
    """Gives the model `seq_idx` (1, T), the number of the item that each token belongs to: kernels of mamba-ssm reset their state by it.

    transformers hands it down to kernels that know it and drops it where its own path computes; the isolation check sees which.
    """

    def add(_: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions = keywords.get("position_ids")
        if positions is not None and "seq_idx" not in keywords:
            keywords["seq_idx"] = ((positions == 0).cumsum(-1) - 1).to(torch.int32)
        return arguments, keywords

    module.register_forward_pre_hook(add, with_kwargs=True)


class ConvertedWeights:
    """A folder whose files are laid out otherwise than the network (experts one by one), read by transformers' own conversion.

    Holds the whole model in memory, in the files' precision, once something is read. UserError where a parameter is missing.
    """

    def __init__(self, folder: Path, shapes: dict[str, list[int]]) -> None:
        self._folder, self._shapes = folder, shapes
        self._parameters: dict[str, Tensor] = {}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> list[int]:
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        if not self._parameters:
            model, found = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
            if missing := sorted(found["missing_keys"]):
                raise UserError(
                    f"{self._folder}: the weights lack {len(missing)} of the model's parameters, {missing[0]} first; is it the same architecture?"
                )
            self._parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}
        return self._parameters[name]


def folder_weights(folder: Path) -> Weights:
    """The weights of a model folder by the network's names: as they lie there where the files use them, else converted."""
    plain, shapes = FolderWeights(folder), {name: list(parameter.shape) for name, parameter in _network(folder).named_parameters()}
    return plain if shapes.keys() <= set(plain.names()) else ConvertedWeights(folder, shapes)


def _network(folder: Path | str) -> Any:
    """The architecture on the meta device: names and shapes."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def file_layout(model_folder: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    """Turns some of the network's tensors (whole blocks) into the layout of the family's files, which vLLM and users expect; None: the same."""
    model = _network(model_folder)
    names = {name for name, _ in model.named_parameters()}
    if set(revert_weight_conversion(model, {name: torch.empty(p.shape, device="meta") for name, p in model.named_parameters()})) == names:
        return None
    return lambda tensors: revert_weight_conversion(model, tensors)

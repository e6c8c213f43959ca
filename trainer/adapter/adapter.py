"""Adapters of peft: put into a model before training, and merged into its fp32 weights when a stage ends, a module at a time.

Merging reads the parent's weights and the trained ones from disk and never holds more than one adapted module beside what is read:
what comes out are ordinary weights, so the next stage, the export and the exam know nothing of adapters.
"""

import hashlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, PeftType
from safetensors.torch import save_file
from torch import Tensor

from console import UserError
from data.ground.adapters import Adapter
from trainer.adapter.reach import adapted, leaves, left_out, refuse_idle_patterns
from trainer.network.buffers import buffers
from trainer.network.families import has_state_space
from trainer.network.mixtures import translate
from trainer.network.model import build_model
from trainer.store.fragment_file import sha256_of
from trainer.store.stages import sync
from trainer.store.weights import Shaped, Weights

_NAME = "default"  # peft's name for a model's only adapter
_READ_DIRECTLY = ["out_proj", "x_proj", "dt_proj"]
"""Of state-space layers: their kernels read these weights past the module."""
_BY_HEADS = ["kv_b_proj"]
"""Of latent attention (DeepSeek-V3): its input has four dimensions, which peft's OFT takes for a picture."""


def _closed(module: torch.nn.Module, kind: str) -> dict[str, str]:
    """Ends of names of linear layers that cannot have an adapter beside them → why."""
    found = (
        dict.fromkeys(_READ_DIRECTLY, "kernels read it past the module, so nothing would be trained there")
        if has_state_space(module)
        else {}
    )
    for path, part in module.named_modules():  # Llama 4's router gives scores and logits
        end = path.rpartition(".")[2]
        if kind == "oft" and end in _BY_HEADS:
            found[end] = "it is given heads apart, which peft's OFT cannot rotate"
        if isinstance(part, torch.nn.Linear) and type(part).forward is not torch.nn.Linear.forward:
            found[end] = f"it is no plain linear layer but a {type(part).__name__}, which peft does not know"
    return found


def peft_config(adapter: Adapter, module: torch.nn.Module) -> PeftConfig:
    """peft's own config of this adapter for this model. UserError where peft refuses a value."""
    settings = adapter.settings()
    if closed := _closed(module, adapter.type):
        targets = settings["target_modules"]
        if targets == "all-linear" and not isinstance(settings.get("exclude_modules"), str):
            settings["exclude_modules"] = [*settings.get("exclude_modules", []), *closed]
        elif passed := [end for end in closed if end in targets and isinstance(targets, list)]:
            raise UserError(f"adapter: target_modules: {passed[0]}: {closed[passed[0]]}; leave it out")
    if adapter.embeddings:
        wanted: Any = module
        ends = {id(wanted.get_input_embeddings()), id(wanted.get_output_embeddings())}
        settings["modules_to_save"] = [name for name, part in module.named_modules() if id(part) in ends]
    try:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[adapter.type.upper()]](**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"adapter: {_first_line(error)}") from None
    if adapter.type == "lora":
        translate(config, module)
    return config


def inject(module: torch.nn.Module, adapter: Adapter, seed: int, number: int, empty: bool = False) -> PeftConfig:
    """Puts the adapter's layers into the model and freezes all else; the model keeps its class and its forward.

    The start depends on (seed, number of the stage in its arm) alone: a second stage does not begin in the first one's subspace.
    `empty`: on the meta device. UserError where peft refuses, or nothing sensible would be trained.
    """
    config = peft_config(adapter, module)
    digest = hashlib.sha256(f"{seed} {number} adapter".encode()).digest()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")  # peft looks for modules, not parameters
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        try:
            inject_adapter_in_model(config, module, low_cpu_mem_usage=empty)
        except (TypeError, ValueError) as error:
            if "ParamWrapper" in str(error):
                raise UserError(
                    f"adapter: experts and routers are adapted as parameters, to which peft gives neither dropout nor DoRA ({_first_line(error)}); "
                    "leave them out with exclude_modules: [experts, gate], or leave that setting out"
                ) from None
            raise UserError(f"adapter: {_first_line(error)}") from None
    refuse_idle_patterns(adapter, module)
    model: Any = module
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.tie_word_embeddings and any(isinstance(end, BaseTunerLayer | ModulesToSaveWrapper) for end in ends):
        raise UserError(
            "adapter: this model's output head is its input embedding (tied), and an adapter on one of them cannot be merged into both; "
            "leave embeddings out, or train all weights (adapter: full)"
        )
    return config


def check_adapter(adapter: Adapter, model_folder: str, zero_stage: int) -> str:
    """How much it trains, for people; on the driver, without weights. UserError for what cannot be."""
    if why := adapter.refused_under(zero_stage):
        raise UserError(f"adapter: {why}")
    with torch.device("meta"):
        module = build_model(model_folder, "eager", torch.float32)
    whole = sum(parameter.numel() for parameter in module.parameters())
    inject(module, adapter, 0, 0, empty=True)
    trained = sum(parameter.numel() for parameter in trained_parameters(module).values())
    if not trained:
        raise UserError(f"adapter: target_modules {adapter.target_modules!r} leaves nothing to train in this model")
    missed = left_out(module) if adapter.target_modules == "all-linear" else []
    without = f", but for {', '.join(missed)}" if missed else ""
    return (
        f"{adapter.type} adapter: {trained:,} weights are trained beside {whole:,} ({100 * trained / whole:.2g} %), and merged when a stage ends; "
        f"in {', '.join(leaves(module))}{without}"
    )


def trained_parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What an injected model trains, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class MergedWeights(Shaped):
    """The parent's weights with a trained adapter merged in, by the names of the model without it; fp32, computed as they are read."""

    def __init__(self, model_folder: str, adapter: Adapter, parent: Weights, trained: Weights) -> None:
        """`trained`: the adapter's own parameters, by the names of the injected model."""
        with torch.device("meta"):
            self._model = build_model(model_folder, "eager", torch.float32)
        named = dict(self._model.named_parameters()) | buffers(self._model)
        self._shapes = {name: list(tensor.shape) for name, tensor in named.items()}
        self.config = inject(self._model, adapter, 0, 0, empty=True)
        self._parent, self._trained, self._names = parent, trained, set(trained.names())
        self._adapted: dict[str, str] = {}
        """Parameter → the adapted module that holds it."""
        self._replaced: dict[str, str] = {}
        """Parameter → the trained copy that takes its place."""
        for path, module in self._model.named_modules():
            if isinstance(module, BaseTunerLayer) and not path.endswith(".base_layer"):  # experts have wrappers inside wrappers
                self._adapted |= {f"{path}.{name}": path for name, _ in module.get_base_layer().named_parameters()}
            elif isinstance(module, ModulesToSaveWrapper):
                copies = module.original_module.named_parameters()
                self._replaced |= {f"{path}.{name}": f"{path}.modules_to_save.{_NAME}.{name}" for name, _ in copies}
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    def read(self, name: str) -> Tensor:
        if name in self._adapted:
            path = self._adapted[name]
            if self._last[0] != path:
                self._last = (path, self._merge(path))
            return self._last[1][name]
        trained = self._replaced.get(name, name)
        return (self._trained.read(trained) if trained in self._names else self._parent.read(name)).float()

    def _merge(self, path: str) -> dict[str, Tensor]:
        module: Any = self._model.get_submodule(path)
        for name, _ in list(module.named_parameters()):
            full, plain = f"{path}.{name}", f"{path}.{name.replace('base_layer.', '')}"
            value = (self._trained.read(full) if full in self._names else self._parent.read(plain)).float()
            owner, _, last = name.rpartition(".")
            module.get_submodule(owner)._parameters[last] = torch.nn.Parameter(value.clone(), requires_grad=False)
        layers: list[Any] = [part for part in module.modules() if isinstance(part, BaseTunerLayer)]
        for layer in reversed(layers):  # the inner ones first
            layer.merge()
        merged = {f"{path}.{name}": weight.detach() for name, weight in module.get_base_layer().named_parameters()}
        module.to("meta")
        for layer in layers:
            layer.merged_adapters.clear()
        return merged

    def tell_patterns(self) -> None:
        """Ranks and alphas by whole names: peft writes patterns in another order than it was given, and the first that matches counts."""
        if self.config.peft_type != PeftType.LORA:
            return
        config: Any = self.config
        for name, default, of in (("rank_pattern", config.r, "r"), ("alpha_pattern", config.lora_alpha, "lora_alpha")):
            values = {re.escape(path): getattr(layer, of)[_NAME] for path, layer in adapted(self._model).items()}
            setattr(config, name, {path: value for path, value in values.items() if value != default})

    def adapter_tensors(self) -> dict[str, Tensor]:
        """As peft's own files name them."""
        read = {name: self._trained.read(name) for name in self._trained.names()}
        kept = get_peft_model_state_dict(self._model, state_dict=read, adapter_name=_NAME)
        return {f"base_model.model.{name}": tensor.contiguous() for name, tensor in kept.items()}


def merged_fragments(weights: MergedWeights, rank: int, world_size: int) -> Iterator[tuple[str, int, Tensor]]:
    """This rank's share of the merged weights, as whole parameters: (name, 0, values (n,)). Modules stay together, so each is merged once."""
    yield from ((name, 0, weights.read(name).flatten()) for name in sorted(weights.names())[_share(weights, rank, world_size)])


def _share(weights: MergedWeights, rank: int, world_size: int) -> slice:
    count = len(weights.names())
    return slice(rank * count // world_size, (rank + 1) * count // world_size)


def write_adapter(weights: MergedWeights, folder: Path) -> dict[str, Any]:
    """The adapter alone, in peft's own files (PeftModel.from_pretrained reads them); {file: {bytes, sha256}}."""
    folder.mkdir(parents=True, exist_ok=True)
    weights.tell_patterns()
    save_file(weights.adapter_tensors(), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    weights.config.task_type = "CAUSAL_LM"  # type: ignore[assignment]
    weights.config.save_pretrained(str(folder))
    found = {}
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        sync(folder / name)
        found[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    return found


def _first_line(error: Exception) -> str:
    return re.sub(r"^\[PEFT:\w+\] ", "", str(error).splitlines()[0])

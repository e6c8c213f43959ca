"""What of an injected model an adapter reaches: for people, and for settings that name something."""

import re
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key

from console import UserError
from data.ground.adapters import Adapter
from trainer.network.mixtures import names_in_files, renamed_experts


def adapted(module: torch.nn.Module) -> dict[str, Any]:
    """What an injected model adapts, modules and parameters, by the names of the model without adapter."""
    found = {}
    for path, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer):
            parameter = getattr(layer, "parameter_name", None)
            found[path.replace(".base_layer", "") + (f".{parameter}" if parameter else "")] = layer
    return found


def refuse_idle_patterns(adapter: Adapter, module: torch.nn.Module) -> None:
    """UserError for a pattern that no adapted module has: peft passes over it without a word."""
    settings, renamed = adapter.settings(), renamed_experts(module)
    names = [name for path in adapted(module) for name in (path, *names_in_files(path, renamed))]
    names += [f"{name.rpartition('.')[0]}.0.{name.rpartition('.')[2]}" for name in names if ".experts." in name]
    for kind in ("rank_pattern", "alpha_pattern"):
        for pattern in settings.get(kind) or {}:
            if not any(get_pattern_key([pattern], name) == pattern for name in names):
                raise UserError(f"adapter: {kind}: {pattern!r} names nothing that is adapted here; adapted are {', '.join(leaves(module))}")


def leaves(module: torch.nn.Module) -> list[str]:
    """Last names of what is adapted, as they come; of experts and routers with their container's."""
    paths = [path.split(".") for path in adapted(module)]
    names = ("gate (router)" if path[-2:] == ["gate", "weight"] else ".".join(path[-2 if "experts" in path else -1 :]) for path in paths)
    return list(dict.fromkeys(names))


def left_out(module: torch.nn.Module) -> list[str]:
    """Last names of matrices in the model's layers that no adapter reaches: of mixtures shared experts, dense layers or all experts."""
    reached = adapted(module)
    found = []
    for name, parameter in module.named_parameters():
        path = name.replace(".base_layer", "")
        inside = path in reached or any(path.startswith(f"{key}.") for key in reached)
        if not (parameter.requires_grad or inside or parameter.ndim < 2) and re.search(r"\.\d+\.", path):
            found.append(".".join(path.removesuffix(".weight").split(".")[-2:]))
    return list(dict.fromkeys(found))

"""LoRA on mixtures of experts: settings by the names of the family's files, which the network no longer has.

transformers holds the experts of a layer as two tensors (gate_up_proj, down_proj), the files name them one by one (w1, w3, w2; gate_proj,
up_proj, down_proj). peft translates `target_modules` alone, by the last part of a name whatever layers a regular expression names, and
forgets exclude_modules and layers_to_transform; here every setting means what its names say, or is refused.
"""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import transformers_weight_conversion as peft_names
from peft.utils.other import get_pattern_key

from console import UserError

_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
"""peft's settings by module, and those that count where they name none."""


def translate(config: Any, module: torch.nn.Module) -> None:
    """Rewrites a LoRA config in place for a model whose experts are renamed. UserError for what cannot be told apart."""
    renamed = renamed_experts(module)
    if not renamed:
        return
    if isinstance(config.target_modules, str) and config.target_modules.lower() != "all-linear":
        config.target_modules, config.target_parameters = _matched(config, module, renamed)
    asked = {name: dict(getattr(config, name) or {}) for name in _PATTERNS}
    peft_names.convert_peft_config_for_transformers(config, module, None)
    targets = config.target_parameters or set()
    found = {key: olds for key, olds in _parameters(module, renamed) if any(f".{key}".endswith(f".{target}") for target in targets)}
    if config.exclude_modules or config.layers_to_transform is not None:
        found = {key: olds for key, olds in found.items() if _agree(key, [_reached(config, name) for name in olds], olds)}
        config.target_parameters = set(found)
    for name, default in _PATTERNS.items():
        patterns, usual = asked[name], getattr(config, default)
        values = {key: _value(patterns, key, olds, usual) for key, olds in found.items()}
        own = {re.escape(key): value for key, value in values.items() if value != patterns.get(get_pattern_key(patterns, key), usual)}
        setattr(config, name, {**own, **patterns})  # the first that matches counts


def renamed_experts(module: Any) -> dict[str, str]:
    """The files' last names → the network's; {} where the model has no experts, or peft does not know them."""
    family = peft_names._MODEL_TO_CONVERSION_PATTERN.get(module.config.model_type)
    return peft_names._MOE_TARGET_MODULE_MAPPING.get(family, {}) if family else {}


def names_in_files(key: str, renamed: dict[str, str]) -> list[str]:
    """ "….experts.w1" and "….experts.w3" of "….experts.gate_up_proj"; [] of what is not renamed."""
    new = next((new for new in sorted(set(renamed.values())) if key.endswith(f".{new}")), None)
    return [key.removesuffix(new) + old for old, known in renamed.items() if known == new] if new else []


def _parameters(module: torch.nn.Module, renamed: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Renamed parameters of the model with their names in the files. Dense layers beside the experts (down_proj.weight) are none."""
    for key, _ in module.named_parameters():
        if olds := names_in_files(key, renamed):
            yield key, olds


def _matched(config: Any, module: torch.nn.Module, renamed: dict[str, str]) -> tuple[set[str], set[str]]:
    """What a regular expression names: (modules, parameters)."""
    own = {key for key, olds in _parameters(module, renamed) if _agree(key, [bool(_numbered(config, old)) for old in olds], olds)}
    own |= {key for key, _ in _parameters(module, renamed) if check_target_module_exists(config, key)}
    modules = {name for name, _ in module.named_modules() if name and check_target_module_exists(config, name)}
    modules = {name for name in modules if not any(key.startswith(f"{name}.") for key in own)}  # a router goes as a parameter
    if dense := sorted(name for name in modules if name.rpartition(".")[2] in renamed):
        raise UserError(
            f"adapter: target_modules: {dense[0]} has a name of the experts', and peft would take them in its place; leave it out"
        )
    return modules, own


def _numbered(config: Any, old: str) -> Any:
    """Whether the expression names an expert's weight, with its number in the files or without."""
    container, _, leaf = old.rpartition(".")
    return check_target_module_exists(config, old) or check_target_module_exists(config, f"{container}.0.{leaf}")


def _reached(config: Any, name: str) -> bool:
    """Whether exclude_modules and layers_to_transform leave a weight in, by its own name or its container's."""
    given = SimpleNamespace(
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        target_modules=[name.rpartition(".")[2]],
    )
    container = SimpleNamespace(exclude_modules=config.exclude_modules, target_modules=".*")
    return all(found is True or isinstance(found, re.Match) for found in _both(given, container, name))


def _both(given: Any, container: Any, name: str) -> Iterator[Any]:
    yield check_target_module_exists(given, name)
    yield check_target_module_exists(container, name.rpartition(".")[0])


def _agree(key: str, answers: list[bool], olds: list[str]) -> bool:
    """All or none of the weights that are one parameter. UserError for some."""
    if len(set(answers)) > 1:
        raise UserError(f"adapter: {_short(olds)} are one parameter here ({key}): name both or none")
    return answers[0]


def _value(asked: dict[str, Any], key: str, olds: list[str], default: Any) -> Any:
    """Of the whole parameter: as given by the network's name, else as many times as the files' weights in it (peft's own rule)."""
    if (pattern := get_pattern_key(asked, key)) in asked:
        return asked[pattern]
    values = [asked.get(get_pattern_key(asked, old), default) for old in olds]
    if len(set(values)) > 1:
        raise UserError(f"adapter: {_short(olds)} are one parameter here ({key}): give both the same rank and alpha")
    return values[0] * len(olds)


def _short(olds: list[str]) -> str:
    return " and ".join(old.rpartition(".")[2] for old in olds)

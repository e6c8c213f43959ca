"""A model's decoder layers: what ZeRO-3 gathers whole, torch compiles whole and float8 goes into."""

from collections.abc import Iterator

import torch


def inner_layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """By transformers' own list of what must not be split; [] where it has none."""
    return list(_outermost(module, set(getattr(module, "_no_split_modules", None) or ())))


def _outermost(module: torch.nn.Module, names: set[str]) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if type(child).__name__ in names:
            yield child
        else:
            yield from _outermost(child, names)

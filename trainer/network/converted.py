"""Model folders whose files are laid out otherwise than the network (experts one by one): turned by transformers' own rules, a group of tensors at a time.

For training the whole is written once, by one process, as the network names and cuts it; from then on every rank reads its slices of it as of any other model.
It costs the model's size on disk and one reading and writing of it; memory is that of one layer's experts.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from console import UserError, say
from data.ground.contents import MEMORY, model_contents
from trainer.store.fragment_file import sha256_of
from trainer.store.shard_writer import DTYPES, TensorSpec, write_sharded
from trainer.store.stages import write_json
from trainer.store.weights import FolderWeights, Shaped

CONVERTED = "network-layout"
"""Of a run folder: models as the network has them, where their files have them otherwise."""
_FORMAT = 1
"""Bump by hand when the same folder would be turned otherwise."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class ConvertedWeights(Shaped):
    """A folder's weights by the network's names. Holds the group of tensors that was turned last. UserError where a parameter is missing."""

    def __init__(self, folder: Path, network: Any) -> None:
        """`network`: on the meta device."""
        self._files, self._network = FolderWeights(folder), network
        self._there = network.state_dict()
        self._shapes = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
        self._groups = self._grouped()
        self._group_of = dict(self._targets())
        self._last: tuple[str, dict[str, Tensor]] = ("", {})
        if missing := sorted(self._shapes.keys() - self._group_of.keys()):
            raise UserError(
                f"{folder}: the weights lack {len(missing)} of the model's parameters, {missing[0]} first; is it the same architecture?"
            )

    def names(self) -> list[str]:
        """Groups together."""
        order = {group: number for number, group in enumerate(self._groups)}
        return sorted(self._shapes, key=lambda name: order[self._group_of[name]])

    def dtype(self, name: str) -> torch.dtype:
        _, sources = self._groups[self._group_of[name]]
        return reduce(torch.promote_types, {DTYPES[self._files.dtype(stored)] for stored, _ in sources})

    def read(self, name: str) -> Tensor:
        group = self._group_of[name]
        if self._last[0] != group:
            self._last = ("", {})
            self._last = (group, self._turned(group, self.dtype(name)))
        found = self._last[1][name]
        assert list(found.shape) == self._shapes[name], (
            f"{name}: {list(found.shape)} of the files where the network has {self._shapes[name]}"
        )
        return found

    def _grouped(self) -> dict[str, tuple[WeightConverter | None, list[tuple[str, str]]]]:
        """First name in the network → (what turns them, [(name in the files, which of its patterns)]), as transformers collects them."""
        changes = get_model_conversion_mapping(self._network)
        renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        converters = [change for change in changes if isinstance(change, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix = self._network.base_model_prefix
        found: dict[str, tuple[WeightConverter | None, list[tuple[str, str]]]] = {}
        for stored in sorted(self._files.names(), key=dot_natural_key):
            name, pattern = rename_source_key(stored, renamings, converters, prefix, self._there)
            if name not in self._there and stored in self._there:
                name, pattern = rename_source_key(stored, [], [], prefix, self._there)
            if name in self._there:
                converter = by_pattern[pattern] if pattern is not None else None
                found.setdefault(name, (converter, []))[1].append((stored, pattern or stored))
        return found

    def _targets(self) -> Iterator[tuple[str, str]]:
        """(parameter, its group): a group of several is tried without values."""
        for group, (converter, _) in self._groups.items():
            names = self._turned(group, None) if converter and len(converter.target_patterns) > 1 else [group]
            yield from ((name, group) for name in names if name in self._shapes)

    def _turned(self, group: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """`dtype` None: on the meta device."""
        converter, sources = self._groups[group]

        def read(stored: str) -> Tensor:
            return torch.empty(self._files.shape(stored), device="meta") if dtype is None else self._files.read(stored).to(dtype)

        if converter is None:
            return {group: read(sources[-1][0])}
        mapping = deepcopy(converter)
        for stored, pattern in sources:
            mapping.add_tensor(group, stored, pattern, read(stored))
        turned = mapping.convert(group, model=self._network, config=self._network.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in turned.items()}


def place_of(folder: Path, run_folder: Path) -> Path:
    """Where the model lies as the network has it, once it is written: by what is in its files, wherever they lie (data/ground/contents.py)."""
    contents = model_contents(folder, run_folder / MEMORY).removeprefix("contents:")
    return run_folder / CONVERTED / f"{contents[:16]}-{_FORMAT}"


def write_converted(weights: ConvertedWeights, folder: Path, run_folder: Path) -> Path:
    """Written once, whole or not at all; every file with its hash in manifest.json. Trials of a search may ask at the same time: one writes."""
    target = place_of(folder, run_folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "manifest.json").is_file() or not _whole(target):
            _write(weights, folder, target)
    return target


def _write(weights: ConvertedWeights, folder: Path, target: Path) -> None:
    say(f"{folder}: its files are laid out otherwise than the network; written anew for training, once ({target})")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(target, ignore_errors=True)
    try:
        specs = [TensorSpec(name, _CODES[weights.dtype(name)], tuple(weights.shape(name))) for name in weights.names()]
        sha256, files = write_sharded(draft, specs, lambda spec: iter([weights.read(spec.name)]))
        write_json(draft / "manifest.json", {"format": _FORMAT, "sha256": sha256, "files": files})
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _whole(folder: Path) -> bool:
    """By hash: what a stage starts from is not taken on trust, and reading it costs less than turning it anew."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return all((folder / name).is_file() and sha256_of(folder / name) == facts["sha256"] for name, facts in files.items())

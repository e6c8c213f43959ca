"""Weights on disk: read from a model folder or from rank fragments, written as rank fragments, exported for users.

Safetensors throughout; nothing is pickled and nothing is gathered. A fragment file of a rank holds flat fp32 pieces of
parameters; its metadata says where in the flattened parameter each piece begins. So any world size or ZeRO stage reads
what any other wrote.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from console import UserError
from trainer.buffers import buffers, set_buffer
from trainer.fragment_file import fragment_file, sha256_of
from trainer.store import sync

_SHARD_BYTES = 5 * 2**30


class Weights(Protocol):
    def names(self) -> list[str]: ...

    def shape(self, name: str) -> list[int]: ...

    def read(self, name: str) -> Tensor:
        """The whole parameter."""


class FolderWeights:
    """The safetensors of a Hugging Face model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.exists():
            self._file_of = {k: folder / v for k, v in json.loads(index.read_text())["weight_map"].items()}
        elif (single := folder / "model.safetensors").exists():
            with safe_open(single, framework="pt") as file:
                self._file_of = dict.fromkeys(file.keys(), single)
        else:
            raise UserError(f"{folder}: no model.safetensors; convert the model to safetensors (pickled weights are never read)")

    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> list[int]:
        with safe_open(self._file_of[name], framework="pt") as file:
            return list(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)


class FragmentWeights:
    """The rank fragments of a committed stage or checkpoint; `kind` "exp_avg" or "exp_avg_sq": an optimiser's moments."""

    def __init__(self, folder: Path, shapes: dict[str, list[int]], world_size: int, kind: str = "weight") -> None:
        self._shapes = shapes
        self._pieces: dict[str, list[tuple[Path, str, int, int]]] = {name: [] for name in shapes}
        for path in (fragment_file(folder, rank) for rank in range(world_size)):  # by name: a listing may lag behind on NFS
            with safe_open(path, framework="pt") as file:
                for stored, offset in json.loads(file.metadata()["offsets"]).items():
                    name = stored if kind == "weight" else stored.removeprefix(f"{kind}/")
                    if name in self._pieces and (kind == "weight" or name != stored):
                        self._pieces[name].append((path, stored, offset, file.get_slice(stored).get_shape()[0]))

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> list[int]:
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        return self.slice(name, 0, prod(self._shapes[name])).reshape(self._shapes[name])

    def slice(self, name: str, start: int, end: int) -> Tensor:
        """Values [start, end) of the flattened parameter, read from the pieces that hold them and no others."""
        flat = torch.full((end - start,), float("nan"))
        for path, stored, offset, size in self._pieces[name]:
            low, high = max(start, offset), min(end, offset + size)
            if low < high:
                with safe_open(path, framework="pt") as file:
                    flat[low - start : high - start] = file.get_slice(stored)[low - offset : high - offset]
        assert not torch.isnan(flat).any(), f"{name}: a piece is missing from the fragments, or a weight is not a number"
        return flat


def load_into(module: torch.nn.Module, weights: Weights, zero_stage: int = 0) -> None:
    """Copies every parameter and what belongs to the model beside them (trainer/buffers.py) from `weights`; under ZeRO-3 one parameter at a time is gathered, and only rank 0 reads.

    UserError where a parameter has no counterpart: the model would start half random.
    """
    available = set(weights.names())
    beside = buffers(module)
    if missing := [name for name in (*(name for name, _ in module.named_parameters()), *beside) if name not in available]:
        what = "buffers" if missing[0] in beside else "parameters"
        raise UserError(f"the weights lack {len(missing)} of the model's {what}, {missing[0]} first; is it the same architecture?")
    for name in beside:
        set_buffer(module, name, weights.read(name))
    for name, parameter in module.named_parameters():
        if zero_stage < 3:
            parameter.data.copy_(weights.read(name))
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.data.copy_(weights.read(name))


def export(
    weights: Weights,
    folder: Path,
    dtype: torch.dtype,
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    kept: Mapping[str, torch.dtype] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Writes `weights` as the safetensors of a model folder, a shard at a time; (SHA-256 over all, {file: {bytes, sha256}}).

    `layout`: how the files name and cut the tensors of a block, where that is not as the network does (trainer/families.py);
    `kept`: tensors that have a dtype of their own.
    Memory: one shard (5 GiB). config.json and tokenizer are the caller's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(weights, dtype))
    digest, weight_map = hashlib.sha256(), {}
    files: dict[str, Any] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: weights.read(name).to((kept or {}).get(name, dtype)) for name in names}
        tensors = layout(tensors) if layout else tensors
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
        sync(folder / file)
        files[file] = {"bytes": (folder / file).stat().st_size, "sha256": sha256_of(folder / file)}
        digest.update(bytes.fromhex(files[file]["sha256"]))
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return digest.hexdigest(), files


def _shards(weights: Weights, dtype: torch.dtype) -> Iterator[list[str]]:
    """Names for each file; a block's parameters stay together, for a layout may need them so."""
    names: list[str] = []
    size = 0
    for _, members in groupby(sorted(weights.names()), key=_block_of):
        block = list(members)
        added = sum(prod(weights.shape(name)) for name in block) * dtype.itemsize
        if names and size + added > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names += block
        size += added
    if names:
        yield names


def _block_of(name: str) -> str:
    """ "model.layers.3" of "model.layers.3.mlp.up_proj.weight"; the name itself outside of blocks."""
    match = re.match(r".*?\.\d+(?=\.)", name)
    return match[0] if match else name

"""Weights on disk: read from a model folder or from rank fragments, written as rank fragments, exported for users.

Safetensors throughout; nothing is pickled and nothing is gathered. A fragment file of a rank holds flat fp32 pieces of
parameters; its metadata says where in the flattened parameter each piece begins. So any world size or ZeRO stage reads
what any other wrote.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from console import UserError

_SHARD_BYTES = 5 * 2**30


class Weights(Protocol):
    def names(self) -> list[str]: ...

    def shape(self, name: str) -> list[int]: ...

    def read(self, name: str) -> Tensor:
        """The whole parameter."""


class FolderWeights:
    """The safetensors of a Hugging Face model folder."""

    def __init__(self, folder: Path) -> None:
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
    """The rank fragments of a committed stage."""

    def __init__(self, folder: Path, shapes: dict[str, list[int]], world_size: int) -> None:
        self._shapes = shapes
        self._pieces: dict[str, list[tuple[Path, int]]] = {name: [] for name in shapes}
        for path in (_fragment_file(folder, rank) for rank in range(world_size)):  # by name: a listing may lag behind on NFS
            with safe_open(path, framework="pt") as file:
                for name, offset in json.loads(file.metadata()["offsets"]).items():
                    self._pieces[name].append((path, offset))

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> list[int]:
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        flat = torch.full((int(torch.Size(self._shapes[name]).numel()),), float("nan"))
        for path, offset in self._pieces[name]:
            with safe_open(path, framework="pt") as file:
                piece = file.get_tensor(name)
            flat[offset : offset + piece.numel()] = piece
        assert not torch.isnan(flat).any(), f"{name}: a piece is missing from the fragments, or a weight is not a number"
        return flat.reshape(self._shapes[name])


def write_fragments(folder: Path, rank: int, fragments: Iterable[tuple[str, int, Tensor]]) -> None:
    """One rank's file; every rank writes its own at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, offsets = {}, {}
    for name, offset, values in fragments:
        tensors[name], offsets[name] = values.cpu().contiguous().clone(), offset
    save_file(tensors, _fragment_file(folder, rank), metadata={"offsets": json.dumps(offsets)})


def _fragment_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


def load_into(module: torch.nn.Module, weights: Weights, zero_stage: int = 0) -> None:
    """Copies every parameter from `weights`; under ZeRO-3 one parameter at a time is gathered, and only rank 0 reads.

    UserError where a parameter has no counterpart: the model would start half random.
    """
    available = set(weights.names())
    if missing := [name for name, _ in module.named_parameters() if name not in available]:
        raise UserError(f"the weights lack {len(missing)} of the model's parameters, {missing[0]} first; is it the same architecture?")
    for name, parameter in module.named_parameters():
        if zero_stage < 3:
            parameter.data.copy_(weights.read(name))
            continue
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.data.copy_(weights.read(name))


def export(weights: Weights, folder: Path, dtype: torch.dtype) -> str:
    """Writes `weights` as the safetensors of a model folder, a shard at a time; returns their SHA-256.

    Memory: one shard (5 GiB). config.json and tokenizer are the caller's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(weights, dtype))
    digest, weight_map = hashlib.sha256(), {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: weights.read(name).to(dtype).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
        with (folder / file).open("rb") as written:
            digest.update(hashlib.file_digest(written, "sha256").digest())
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return digest.hexdigest()


def _shards(weights: Weights, dtype: torch.dtype) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name in sorted(weights.names()):
        added = prod(weights.shape(name)) * dtype.itemsize
        if names and size + added > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += added
    if names:
        yield names

"""The safetensors of hf/, written by all ranks at once: each puts its own shards together, hashed as they are written, and reads none.

A tensor comes to every rank over the network, in the precision of the file, and the rank whose shard it belongs to keeps it: an all-gather of the weights, what
ZeRO-3 does in each forward pass. Memory: the tensor that comes, and the one that is being written.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.network.families import Layout, block_of
from trainer.store.group import rank_and_size
from trainer.store.shard_writer import DTYPES, ShardFile, TensorSpec
from trainer.store.stages import sync
from trainer.store.weights import Weights

_MOST_BYTES = 5 * 2**30
"""Of a shard."""
_LEAST_BYTES = 256 * 2**20
"""Below this a shard is not worth a rank of its own: a small model has one file."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Unit:
    """Tensors of the network that the layout of the files needs together, and what they are there."""

    names: tuple[str, ...]
    specs: tuple[TensorSpec, ...]

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.specs)


def write_model(
    weights: Weights,
    folder: Path,
    dtype: torch.dtype,
    layout: Layout | None = None,
    kept: Mapping[str, torch.dtype] | None = None,
    together: bool = False,
    ranks: int = 1,
) -> tuple[str, dict[str, Any]]:
    """Writes `weights` as the safetensors of a model folder; (SHA-256 over all, {file: {bytes, sha256}}), the same on every rank.

    `layout`: how the files name and cut tensors, where that is not as the network does (trainer/network/families.py); `kept`: tensors that have a dtype of their own;
    `together`: by all ranks, of which each reads the same weights in the same order; `ranks`: alone, in as many shards as so many would write. config.json and tokenizer are the caller's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank, num_ranks = rank_and_size() if together else (0, 1)
    dtypes = {name: (kept or {}).get(name, dtype) for name in weights.names()}
    shards = cut_in_shards(list(_units({name: weights.shape(name) for name in dtypes}, dtypes, layout)), max(num_ranks, ranks))
    names = shard_names(len(shards))
    mine = {
        n: ShardFile(folder / names[n], [spec for unit in shards[n] for spec in unit.specs]) for n in range(rank, len(shards), num_ranks)
    }
    with ThreadPoolExecutor(1, "shard") as pool:
        writing: Future[None] | None = None
        for turn in zip_longest(*shards):  # a tensor of every shard, then the next: all ranks write at the same time
            for number, unit in enumerate(turn):
                if unit is None:
                    continue
                tensors = {name: weights.read(name).to(dtypes[name]) for name in unit.names}
                if number in mine:
                    if writing:
                        writing.result()
                    writing = pool.submit(_write, mine[number], unit, {name: t.cpu() for name, t in tensors.items()}, layout)
        if writing:
            writing.result()
    files = {names[n]: file.close() for n, file in mine.items()}
    if num_ranks > 1:
        told: list[Any] = [None] * num_ranks
        torch.distributed.all_gather_object(told, files)
        files = {name: facts for part in told for name, facts in part.items()}
    files = {name: files[name] for name in names}
    if len(names) > 1 and rank == 0:
        files["model.safetensors.index.json"] = _write_index(folder, shards, names)
    digest = hashlib.sha256(b"".join(bytes.fromhex(files[name]["sha256"]) for name in names))
    return digest.hexdigest(), files


def shard_names(count: int) -> list[str]:
    return ["model.safetensors"] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def cut_in_shards(units: list[Unit], num_ranks: int) -> list[list[Unit]]:
    """As many shards for every rank, of nearly equal size: the largest unit first, into the smallest shard. In each by name."""
    total = sum(unit.bytes for unit in units)
    count = max(ceil(total / _MOST_BYTES), min(num_ranks, ceil(total / _LEAST_BYTES)), 1)
    count = min(ceil(count / num_ranks) * num_ranks if count > num_ranks else count, len(units))
    shards: list[list[Unit]] = [[] for _ in range(count)]
    sizes = [0] * count
    for unit in sorted(units, key=lambda unit: (-unit.bytes, unit.names)):
        smallest = sizes.index(min(sizes))
        shards[smallest].append(unit)
        sizes[smallest] += unit.bytes
    return [sorted(shard, key=_order) for shard in shards]


def _order(unit: Unit) -> Any:
    """As save_file has it: wider numbers first, then by name."""
    return -max(DTYPES[spec.dtype].itemsize for spec in unit.specs), unit.names


def _units(shapes: Mapping[str, list[int]], dtypes: Mapping[str, torch.dtype], layout: Layout | None) -> Iterator[Unit]:
    """A tensor each where the layout turns each by itself, else a block each. Found out with tensors that have no values."""
    names = sorted(shapes)
    empty = {name: torch.empty(shapes[name], dtype=dtypes[name], device="meta") for name in names}
    if layout is None:
        yield from (Unit((name,), (_spec(name, empty[name]),)) for name in names)
        return
    alone = [_unit([name], layout, empty) for name in names]
    whole = _unit(names, layout, empty)
    if (
        whole
        and None not in alone
        and sorted(spec.name for unit in alone if unit for spec in unit.specs) == sorted(s.name for s in whole.specs)
    ):
        yield from (unit for unit in alone if unit)
        return
    for _, members in groupby(names, key=block_of):
        block = _unit(list(members), layout, empty)
        assert block is not None
        yield block


def _unit(names: list[str], layout: Layout, empty: Mapping[str, Tensor]) -> Unit | None:
    """None where the layout cannot turn these alone."""
    try:
        turned = layout({name: empty[name] for name in names})
    except Exception:  # what transformers says of a part that it cannot turn is no matter: it gets more
        if len(names) > 1:
            raise
        return None
    return Unit(tuple(names), tuple(_spec(name, tensor) for name, tensor in sorted(turned.items())))


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, _CODES[tensor.dtype], tuple(tensor.shape))


def _write(file: ShardFile, unit: Unit, tensors: dict[str, Tensor], layout: Layout | None) -> None:
    turned = layout(tensors) if layout else tensors
    for spec in unit.specs:
        file.write(spec, turned[spec.name])


def _write_index(folder: Path, shards: list[list[Unit]], names: list[str]) -> dict[str, Any]:
    file_of = {spec.name: name for name, shard in zip(names, shards, strict=True) for unit in shard for spec in unit.specs}
    total = sum(unit.bytes for shard in shards for unit in shard)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}, indent=1).encode()
    path = folder / "model.safetensors.index.json"
    path.write_bytes(text)
    sync(path)
    return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}

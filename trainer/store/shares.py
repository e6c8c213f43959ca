"""Weights that all ranks have together. To load them each reads an n-th of them from storage, once, and gives it to the others where they need it.

Under ZeRO-3 a rank's share of a parameter is what it will hold. Below, every rank holds the whole in the engine's precision and fp32 masters of a part that is
known only when the engine is made: the whole is put together over the network, for the parameters and once more for the masters, and storage gives every byte
once in all. Costs between the two a share in the files' precision of host memory: 4 bytes a weight / ranks.
"""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from trainer.store.fragment_file import Fragment
from trainer.store.fragments import holder
from trainer.store.group import Part, assemble, cut, even_parts, rank_and_size
from trainer.store.weights import Shaped, Weights


class Spread(Shaped):
    """Weights in pieces among the ranks: `read` by all together gives each of them the whole, in its dtype on `device`."""

    def __init__(
        self, mine: Iterable[Fragment], shapes: dict[str, list[int]], dtypes: Mapping[str, torch.dtype], device: torch.device
    ) -> None:
        """By all ranks. `mine`: what this one has; `dtypes`: the precision in which a tensor travels."""
        self._mine = {(name, offset): values for name, offset, values in mine}
        self._shapes, self._dtypes, self._device = shapes, dtypes, device
        rank, num_ranks = rank_and_size()
        told: list[Any] = [None] * num_ranks
        listed = [(name, (rank, offset, values.numel())) for (name, offset), values in self._mine.items()]
        if num_ranks > 1:
            torch.distributed.all_gather_object(told, listed)
        else:
            told = [listed]
        self._parts: dict[str, list[Part]] = {name: [] for name in shapes}
        for name, part in (entry for entries in told for entry in entries):
            self._parts[name].append(part)

    def read(self, name: str) -> Tensor:
        shape, dtype = self._shapes[name], self._dtypes[name]
        return assemble(self._parts[name], lambda offset, _: self._mine[name, offset].to(dtype), prod(shape), dtype, self._device).view(
            shape
        )


class Shares:
    def __init__(self, weights: Weights, twice: bool = False) -> None:
        """`twice`: each parameter is asked for two times, of which the second must not go to storage."""
        self._weights, self._twice = weights, twice
        self._kept: dict[str, Tensor] = {}
        self._rank, self._num_ranks = rank_and_size()

    def share(self, name: str) -> Tensor:
        """This rank's values of the flattened parameter, as ZeRO-3 cuts it, in the precision of the files."""
        if name in self._kept:
            return self._kept.pop(name)
        values = self._weights.slice(name, *cut(prod(self._weights.shape(name)), self._rank, self._num_ranks))
        if self._twice:
            self._kept[name] = values
        return values

    def whole(self, name: str, device: torch.device) -> Tensor:
        """The flattened parameter on every rank. A collective."""
        size = prod(self._weights.shape(name))
        fragments = getattr(self._weights, "fragments", None)
        if (
            fragments is not None and fragments.all_held and self._num_ranks > 1
        ):  # as it lies there: nobody reads a file that another has in memory
            parts = [(holder(piece.file, self._num_ranks), piece.offset, piece.size) for piece in self._weights.pieces(name)]  # type: ignore[attr-defined]
            return assemble(parts, lambda offset, count: self._weights.slice(name, offset, offset + count), size, torch.float32, device)
        values = self.share(name)
        return assemble(even_parts(size, self._num_ranks), lambda offset, count: values, size, values.dtype, device)

"""Weights on disk: read from a model folder or from rank fragments, written as rank fragments, exported for users.

Safetensors throughout; nothing is pickled and nothing is gathered. A fragment file of a rank holds flat fp32 pieces of
parameters; its metadata says where in the flattened parameter each piece begins. So any world size or ZeRO stage reads
what any other wrote.
"""

import json
from abc import ABC, abstractmethod
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from console import UserError
from trainer.store.fragments import Fragments, Piece, open_fragments
from trainer.store.tensor_file import TensorFile


class Weights(Protocol):
    def names(self) -> list[str]: ...

    def shape(self, name: str) -> list[int]: ...

    def read(self, name: str) -> Tensor:
        """The whole parameter."""

    def slice(self, name: str, start: int, end: int) -> Tensor:
        """Values [start, end) of the flattened parameter; no others are read."""


class Shaped(ABC):
    """Weights of known shapes that are put together when they are read."""

    _shapes: dict[str, list[int]]

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> list[int]:
        return self._shapes[name]

    @abstractmethod
    def read(self, name: str) -> Tensor: ...

    def slice(self, name: str, start: int, end: int) -> Tensor:
        return self.read(name).flatten()[start:end]


class FolderWeights:
    """The safetensors of a Hugging Face model folder. A file is opened when something of it is asked for, and stays open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, TensorFile] = {}
        index = folder / "model.safetensors.index.json"
        if index.exists():
            self._file_of = {k: folder / v for k, v in json.loads(index.read_text())["weight_map"].items()}
        elif (single := folder / "model.safetensors").exists():
            self._open[single] = TensorFile(single)
            self._file_of = dict.fromkeys(self._open[single].entries, single)
        else:
            raise UserError(f"{folder}: no model.safetensors; convert the model to safetensors (pickled weights are never read)")

    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> list[int]:
        return list(self._in(name).entries[name].shape)

    def dtype(self, name: str) -> str:
        """As the file has it: "BF16"."""
        return self._in(name).entries[name].dtype

    def read(self, name: str) -> Tensor:
        return self._in(name).read(name)

    def slice(self, name: str, start: int, end: int) -> Tensor:
        return self._in(name).slice(name, start, end)

    def _in(self, name: str) -> TensorFile:
        path = self._file_of[name]
        if path not in self._open:
            self._open[path] = TensorFile(path)
        return self._open[path]


class FragmentWeights(Shaped):
    """The rank fragments of a committed stage or checkpoint; `kind` "exp_avg" or "exp_avg_sq": an optimiser's moments."""

    def __init__(
        self, folder: Path, shapes: dict[str, list[int]], world_size: int, kind: str = "weight", fragments: Fragments | None = None
    ) -> None:
        """`fragments`: as all ranks have opened them together; else this process reads every header by itself."""
        self.fragments = fragments or open_fragments(folder, world_size, shapes)
        self._shapes = shapes
        self._prefix = "" if kind == "weight" else f"{kind}/"

    def pieces(self, name: str) -> list[Piece]:
        return self.fragments.pieces(self._prefix + name)

    def read(self, name: str) -> Tensor:
        return self.slice(name, 0, prod(self._shapes[name])).reshape(self._shapes[name])

    def slice(self, name: str, start: int, end: int) -> Tensor:
        """Read from the pieces that hold it and no others; a view where one of them has all of it in memory."""
        found = [(max(start, p.offset), min(end, p.offset + p.size), p) for p in self.pieces(name)]
        parts = [self.fragments.read(piece, low, high) for low, high, piece in found if low < high]
        values = parts[0] if len(parts) == 1 else torch.cat(parts or [torch.empty(0)])
        missing = len(values) != end - start or bool(torch.isnan(values).any())
        assert not missing, f"{name}: a piece is missing from the fragments, or a weight is not a number"
        return values

"""A model folder as the arithmetic of weights sees it: lazily read tensors, named tokens, and what must agree between two models.

Nothing of it is run or unpickled (trainer/network/model_check.py); every refusal is one line.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from console import UserError
from data.tokens import load_tokenizer
from trainer.network.buffers import buffers, names_in_files
from trainer.network.families import make_network
from trainer.network.model_check import check_model_folder
from trainer.network.text_config import SIZES, text_settings
from trainer.store.shard_writer import DTYPES
from trainer.store.weights import FolderWeights

Rows = npt.NDArray[np.int64]
CHUNK_VALUES = 2**18
"""Values read at a time: 1 MiB in fp32."""
# What shapes cannot show, and what reads better than a shape: equal in every two models whose weights are added.
_ARCHITECTURE = (*SIZES, "head_dim", "hidden_act", "tie_word_embeddings")
# What siblings of one family may differ in (Llama 3 and 3.1): said, not refused.
_TOLD = ("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings", "sliding_window", "rms_norm_eps")
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # old checkpoints hold them, newer ones compute them
# Names that keep a number free for later: such a row means nothing yet, like the padded rows behind the last token.
_FREE = re.compile(r"[<\[]\|?(reserved\w*?|unused|extra|placeholder|dummy|control|special)_?\d+\|?[>\]]", re.IGNORECASE)


class LazyWeights(FolderWeights):
    """Tensors in slices of their first dimension. What a header says is trusted only after the library has checked it (check, trainer/network/model_check.py)."""

    def check(self, model: str) -> None:
        """UserError where a file lacks a tensor that the index promises, or holds values that cannot be added."""
        for path in sorted(set(self._file_of.values())):
            try:
                with safe_open(path, framework="np") as file:
                    there = set(file.keys())
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a readable safetensors file ({error}); fetch the model again") from None
            for name in (name for name, place in self._file_of.items() if place == path):
                if name not in there:
                    raise UserError(f"{path}: lacks the tensor {name!a} that the index promises; fetch the model again")
                if (dtype := self.dtype(name)) not in DTYPES:
                    raise UserError(f"{model}: {name} is quantised ({dtype}): weights of 8 bits cannot be added; give it in bf16")

    def chunk(self, name: str, start: int, end: int) -> Tensor:
        """Rows [start, end) of the tensor; the whole of one without dimensions."""
        if not (shape := self.shape(name)):
            return self.read(name)
        row = prod(shape[1:])
        return self.slice(name, start * row, end * row).reshape([end - start, *shape[1:]])

    def take(self, name: str, rows: Rows) -> Tensor:
        """These rows in fp32, in this order, each run of neighbours read at once; zeros for −1."""
        taken = torch.zeros((len(rows), *self.shape(name)[1:]))
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, last in pairwise(cuts):
            # A run that begins with −1 goes on with row 0: both are in the table, and only the second is read.
            skip = int(rows[first] < 0) if last > first else 0
            if last - first > skip:
                taken[first + skip : last] = self.chunk(name, int(rows[first + skip]), int(rows[last - 1]) + 1)
        return taken


def chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """[start, end) of the first dimension, each of some CHUNK_VALUES values."""
    if not shape:
        yield 0, 1
        return
    step = max(1, CHUNK_VALUES // max(1, prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


@dataclass(frozen=True)
class Model:
    """A folder with config.json, tokenizer and safetensors."""

    name: str
    """As people call it."""
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The text model's settings, with the defaults that the file leaves out."""
        return text_settings(self.folder)

    @cached_property
    def weights(self) -> LazyWeights:
        return LazyWeights(self.folder)

    @cached_property
    def _special(self) -> "_Special":
        return _special_tensors(self.folder, self.weights.names())

    @cached_property
    def names(self) -> list[str]:
        """The tensors that count, in order: without the second names of tied ones and without buffers that are computed."""
        return sorted(name for name in self.weights.names() if name not in self._special.second and not _BUFFERS.search(name))

    @cached_property
    def vocabulary_tensors(self) -> set[str]:
        """Those with a row for each token."""
        return self._special.by_row & set(self.names)

    @property
    def buffers(self) -> set[str]:
        """Those that are no parameters and belong to the model: routers' corrections and the like (trainer/network/buffers.py)."""
        return self._special.buffers

    @property
    def constants(self) -> set[str]:
        """Those that every model of this architecture has alike."""
        return self._special.constants

    @cached_property
    def vocabulary(self) -> "Vocabulary":
        tensors = sorted(self.vocabulary_tensors)
        rows = self.weights.shape(tensors[0])[0] if tensors else int(self.config.get("vocab_size") or 0)
        return Vocabulary.of(self.folder, rows)

    @property
    def left_out(self) -> list[str]:
        return sorted(set(self.weights.names()) - set(self.names))

    def spec(self, name: str) -> tuple[str, tuple[int, ...]]:
        return self.weights.dtype(name), tuple(self.weights.shape(name))


def open_model(name: str, folder: Path) -> Model:
    """UserError where config or weights cannot be used safely, or are quantised."""
    check_model_folder(folder)
    model = Model(name, folder.resolve())
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise UserError(f"{name}: is quantised (quantization_config in {folder / 'config.json'}); give the model in bf16")
    model.weights.check(name)
    return model


@dataclass(frozen=True)
class _Special:
    """Names of tensors that are not simply added."""

    by_row: set[str]
    """With a row a token."""
    second: set[str]
    """Second names of tied ones."""
    buffers: set[str]
    constants: set[str]


def _special_tensors(folder: Path, files: list[str]) -> _Special:
    """From the architecture, built without memory; `files`: names of the tensors in its files."""
    model = make_network(folder)
    first: dict[int, str] = {}
    second = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            second.add(name)
        first.setdefault(id(parameter), name)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    held = [parameter for end in ends if end is not None for parameter in end.parameters()]
    beside, constants = (set(names_in_files(model, buffers(model, constant), files).values()) for constant in (False, True))
    return _Special({first[id(parameter)] for parameter in held}, second, beside, constants)


@dataclass(frozen=True)
class Vocabulary:
    """Which token stands at which row."""

    rows: int
    """Of the embeddings; more than there are tokens where they are padded."""
    row_of: dict[str, int]
    """Tokens that mean something: not those that only keep a number free."""

    @classmethod
    def of(cls, folder: Path, rows: int) -> "Vocabulary":
        named = load_tokenizer(str(folder)).get_vocab()
        return cls(rows, {token: row for token, row in named.items() if row < rows and not _FREE.fullmatch(token)})

    @cached_property
    def token_at(self) -> dict[int, str]:
        return {row: token for token, row in self.row_of.items()}

    def is_free(self, row: int) -> bool:
        """A row that is there and has no meaning yet."""
        return row < self.rows and row not in self.token_at

    def row_for(self, token: str, number: int) -> int:
        """Its row by name; else the free row of the same number, which it has been given; −1 where there is neither."""
        return self.row_of.get(token, number if self.is_free(number) else -1)


def check_settings(ours: dict[str, Any], theirs: dict[str, Any], our_name: str, their_name: str) -> list[str]:
    """UserError for another architecture; what differs and is let pass, in words."""
    for key in _ARCHITECTURE:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{our_name}: another architecture than {their_name}: {key} is {ours.get(key)} here and {theirs.get(key)} there; "
                "weights add up only within one architecture"
            )
    return [
        f"{key} is {ours.get(key)} in {our_name} and {theirs.get(key)} in {their_name}" for key in _TOLD if ours.get(key) != theirs.get(key)
    ]


def check_tensors(
    ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]], by_row: set[str], our_name: str, their_name: str
) -> None:
    """UserError for missing or extra tensors and for other shapes; those in `by_row` may differ in their first dimension."""
    for missing, who, other in ((theirs.keys() - ours.keys(), our_name, their_name), (ours.keys() - theirs.keys(), their_name, our_name)):
        if missing:
            raise UserError(
                f"{who}: lacks {len(missing)} of the tensors of {other}, {sorted(missing)[0]} first; is it the same architecture, and whole?"
            )
    for name, shape in ours.items():
        there = theirs[name]
        if (shape[1:] != there[1:]) if name in by_row else (shape != there):
            raise UserError(f"{our_name}: {name} is {_times(shape)} here and {_times(there)} in {their_name}; is it the same architecture?")


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def fingerprint(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()

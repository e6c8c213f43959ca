"""Safetensors read by ranges of bytes, from files that stay open: what is asked for is read, and nothing else.

safetensors' own slices map the file: the kernel then decides how much of it is fetched, page by page on network storage, and what stays in memory. A
header is trusted as far as it describes bytes that are there.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from console import UserError
from trainer.store.shard_writer import DTYPES
from trainer.store.storage import READING

_CHUNK = 16 * 2**20
_LARGEST_HEADER = 100_000_000
"""Bytes, as safetensors has it."""


class ByteFile:
    """Opened at once, and closed with the object."""

    def __init__(self, path: Path, content: Tensor | None = None) -> None:
        """`content`: all of its bytes, where they are in memory; then nothing is opened."""
        self.path, self._content = path, content
        self._file = None if content is not None else path.open("rb", buffering=0)
        self.size = len(content) if content is not None else os.fstat(self._file.fileno()).st_size  # type: ignore[union-attr]

    @property
    def held(self) -> bool:
        return self._content is not None

    def read(self, begin: int, dtype: torch.dtype, count: int) -> Tensor:
        """`count` values from this byte on, (count,); of a held file a view. UserError where the file ends before."""
        size = count * dtype.itemsize
        if begin + size > self.size:
            raise UserError(f"{self.path}: ends before its header says; fetch or train it again")
        if self._content is not None:
            part = self._content[begin : begin + size]
            return (part if part.data_ptr() % dtype.itemsize == 0 else part.clone()).view(dtype)
        values = torch.empty(count, dtype=dtype)
        if size:
            _read_into(self._file.fileno(), values.view(torch.uint8).numpy().data, begin, self.path)  # type: ignore[union-attr]
        return values


def _read_into(descriptor: int, target: memoryview, begin: int, path: Path) -> None:
    done = 0
    while done < len(target):
        started = time.perf_counter()
        count = os.preadv(descriptor, [target[done : done + _CHUNK]], begin + done)
        READING.add(count, time.perf_counter() - started)
        if not count:
            raise UserError(f"{path}: ends before its header says; fetch or train it again")
        done += count


def read_whole(path: Path) -> tuple[ByteFile, str]:
    """The file in memory, and its SHA-256, in one reading."""
    content, digest = torch.empty(path.stat().st_size, dtype=torch.uint8), hashlib.sha256()
    target = content.numpy().data
    with path.open("rb", buffering=0) as file:
        for begin in range(0, len(target), _CHUNK):
            part = target[begin : begin + _CHUNK]
            _read_into(file.fileno(), part, begin, path)
            digest.update(part)
    return ByteFile(path, content), digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    dtype: str
    """As the file has it: "BF16"."""
    shape: tuple[int, ...]
    begin: int
    """Of its bytes in the file."""
    bytes: int


def read_header(file: ByteFile) -> tuple[dict[str, Entry], dict[str, str]]:
    """(tensors, metadata). UserError for what is no safetensors file."""
    try:
        length = int.from_bytes(bytes(file.read(0, torch.uint8, 8).numpy()), "little")
        if length > min(_LARGEST_HEADER, file.size - 8):
            raise ValueError("the header would be longer than the file")
        header = json.loads(bytes(file.read(8, torch.uint8, length).numpy()))
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(values, 8 + length) for name, values in header.items()}
        if any(entry.begin + entry.bytes > file.size for entry in entries.values()):
            raise ValueError("tensors lie beyond its end")
    except (UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file.path}: not a readable safetensors file ({error}); fetch or train it again") from None
    return entries, metadata


def _entry(values: dict[str, Any], data: int) -> Entry:
    shape, (begin, end) = tuple(int(size) for size in values["shape"]), values["data_offsets"]
    dtype = str(values["dtype"])
    if not 0 <= begin <= end or any(size < 0 for size in shape):
        raise ValueError("a tensor has no place in it")
    if dtype in DTYPES and end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError("a tensor has another size than its shape")
    return Entry(dtype, shape, data + begin, end - begin)


class TensorFile:
    """A file with its header, which is read when it is opened."""

    def __init__(self, path: Path) -> None:
        self._file = ByteFile(path)
        self.entries, self.metadata = read_header(self._file)

    def slice(self, name: str, start: int, end: int) -> Tensor:
        """Values [start, end) of the flattened tensor."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise UserError(f"{self._file.path}: {name} is quantised ({entry.dtype}); give the model in bf16")
        dtype = DTYPES[entry.dtype]
        return self._file.read(entry.begin + start * dtype.itemsize, dtype, end - start)

    def read(self, name: str) -> Tensor:
        shape = self.entries[name].shape
        return self.slice(name, 0, prod(shape)).reshape(shape)

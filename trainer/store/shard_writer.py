"""Safetensors written as a stream: tensors go to disk piece by piece and are hashed on the way, so that no shard is ever held in memory.

safetensors' own `save_file` wants every tensor of a file at once. The files are ordinary safetensors: the library reads them.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.store.stages import sync
from trainer.store.storage import WRITING

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What a tensor of a model folder may be, by safetensors' names. Anything else (8-bit floats) is a quantised model."""
SHARD_BYTES = 5 * 2**30
_CHUNK = 16 * 2**20


@dataclass(frozen=True)
class TensorSpec:
    name: str
    dtype: str
    """A key of DTYPES."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def write_sharded(
    folder: Path,
    tensors: Iterable[TensorSpec],
    pieces: Callable[[TensorSpec], Iterator[Tensor]],
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[], None] = lambda: None,
) -> tuple[str, dict[str, Any]]:
    """Writes the weights of a model folder; (SHA-256 over all, {file: {bytes, sha256}}), as trainer.export.model_shards does.

    `pieces`: of each tensor its values in order, in its dtype, in as many pieces as suits; memory is that of one piece. `written` is called
    after each tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(tensors, shard_bytes))
    digest = hashlib.sha256()
    files: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files[file] = _write_file(folder / file, specs, pieces, written)
        weight_map.update(dict.fromkeys((spec.name for spec in specs), file))
        digest.update(bytes.fromhex(files[file]["sha256"]))
    if len(shards) > 1:
        total = sum(spec.bytes for specs in shards for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    sync(folder)
    return digest.hexdigest(), files


def _shards(tensors: Iterable[TensorSpec], shard_bytes: int) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    size = 0
    for spec in tensors:
        if shard and size + spec.bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(spec)
        size += spec.bytes
    if shard:
        yield shard


def _write_file(
    path: Path, specs: list[TensorSpec], pieces: Callable[[TensorSpec], Iterator[Tensor]], written: Callable[[], None]
) -> dict[str, Any]:
    file = ShardFile(path, specs)
    for spec in specs:
        for piece in pieces(spec):
            file.write(spec, piece)
        written()
    return file.close()


class ShardFile:
    """One file under way. Tensors come in the order of `specs`, each in one piece or in several; close() gives {"bytes", "sha256"}."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self._path, self._specs = path, list(specs)
        self._digest, self.bytes = hashlib.sha256(), 0
        self._left = {spec.name: spec.bytes for spec in specs}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for spec in specs:
            header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.bytes]}
            at += spec.bytes
        text = json.dumps(header, separators=(",", ":")).encode()  # as save_file writes it
        text += b" " * (-len(text) % 8)  # data begin aligned, as safetensors wants it
        self._file = path.open("wb")
        self._put(len(text).to_bytes(8, "little") + text)

    def write(self, spec: TensorSpec, piece: Tensor) -> None:
        assert piece.dtype == DTYPES[spec.dtype], f"{spec.name}: {piece.dtype} where the header says {spec.dtype}"
        assert spec.name == self._specs[0].name, f"{spec.name} where {self._specs[0].name} should come"
        data = piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._put(data)
        self._left[spec.name] -= len(data)
        assert self._left[spec.name] >= 0, f"{spec.name}: more bytes than the header says"
        if not self._left[spec.name]:
            del self._specs[0]

    def close(self) -> dict[str, Any]:
        """On disk when this returns."""
        empty = [spec for spec in self._specs if spec.bytes]
        assert not empty, f"{empty[0].name}: fewer bytes than the header says"
        self._file.close()
        sync(self._path)
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}

    def _put(self, data: bytes | memoryview) -> None:
        started = time.perf_counter()
        for start in range(0, len(data), _CHUNK):
            self._file.write(data[start : start + _CHUNK])
            self._digest.update(data[start : start + _CHUNK])
        self.bytes += len(data)
        WRITING.add(len(data), time.perf_counter() - started)

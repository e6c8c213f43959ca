"""Safetensors written as a stream: tensors go to disk piece by piece and are hashed on the way, so that no shard is ever held in memory.

safetensors' own `save_file` wants every tensor of a file at once. The files are ordinary safetensors: the library reads them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.store import sync

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
    """Writes the weights of a model folder; (SHA-256 over all, {file: {bytes, sha256}}), as trainer.weights.export does.

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
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in specs:
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.bytes]}
        at += spec.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begin aligned, as safetensors wants it
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in (len(text).to_bytes(8, "little"), text):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        for spec in specs:
            count = 0
            for piece in pieces(spec):
                assert piece.dtype == DTYPES[spec.dtype], f"{spec.name}: {piece.dtype} where the header says {spec.dtype}"
                data = piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
                file.write(data)
                digest.update(data)
                count += len(data)
            assert count == spec.bytes, f"{spec.name}: {count} bytes where the header says {spec.bytes}"
            size += count
            written()
    sync(path)
    return {"bytes": size, "sha256": digest.hexdigest()}

"""One rank's share of weights and moments as a safetensors file, written without holding up whoever trains.

safetensors' own `save_file` turns every tensor into bytes first, under Python's lock: a training loop beside it would stand still. Here
tensors are copied into one flat buffer that is kept from save to save, and the buffer goes to disk as it is, hashed on the way. The
file is ordinary safetensors: the library reads it.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.ground.contents import sha256_of as sha256_of
from failpoints import hit
from trainer.store.stages import sync
from trainer.store.storage import WRITING

Fragment = tuple[str, int, Tensor]
"""(name, offset in the flattened parameter, values (n,) in fp32)."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by torch's names; a file holds them as "exp_avg/NAME"."""
_CHUNK = 16 * 2**20


class FragmentBuffer:
    """A kept copy of one rank's fragments; names, offsets and sizes must be the same at every `fill`."""

    def __init__(self) -> None:
        self._header = b""
        self._layout: list[tuple[str, int, int]] = []
        self._values = torch.empty(0)

    def fill(self, fragments: Iterable[Fragment]) -> None:
        """Copies the fragments: the only part of a save that training waits for."""
        listed = list(fragments)
        layout = [(name, offset, values.numel()) for name, offset, values in listed]
        if layout != self._layout:
            self._allocate(layout, any(values.is_cuda for _, _, values in listed))
        at = 0
        for _, _, values in listed:
            self._values[at : at + values.numel()].copy_(values, non_blocking=True)
            at += values.numel()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _allocate(self, layout: list[tuple[str, int, int]], pinned: bool) -> None:
        header: dict[str, Any] = {"__metadata__": {"offsets": json.dumps({name: offset for name, offset, _ in layout})}}
        at = 0
        for name, _, size in layout:
            header[name] = {"dtype": "F32", "shape": [size], "data_offsets": [at, at + 4 * size]}
            at += 4 * size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # data begin aligned, as safetensors wants it
        self._header = len(text).to_bytes(8, "little") + text
        self._layout = layout
        self._values = torch.empty(at // 4, dtype=torch.float32, pin_memory=pinned)

    def fragments(self) -> Iterator[Fragment]:
        """What was filled last, as views."""
        at = 0
        for name, offset, size in self._layout:
            yield name, offset, self._values[at : at + size]
            at += size

    def write(self, path: Path) -> dict[str, Any]:
        """Writes what was filled last, whole or not at all; {"bytes", "sha256"}. OSError where the disk refuses."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        digest, size = hashlib.sha256(), 0
        data = self._values.numpy().view(np.uint8).data
        started = time.perf_counter()
        hit("fragment.before_data")
        try:
            with draft.open("wb") as file:
                for part in (memoryview(self._header), data):
                    for start in range(0, len(part), _CHUNK):
                        chunk = part[start : start + _CHUNK]
                        file.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                    hit("fragment.mid_file")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)  # a full disk stays full with it
            raise
        sync(path.parent)
        WRITING.add(size, time.perf_counter() - started)
        return {"bytes": size, "sha256": digest.hexdigest()}


def fragment_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


def filled(fragments: Iterable[Fragment]) -> FragmentBuffer:
    """A copy of one rank's fragments in fp32."""
    buffer = FragmentBuffer()
    buffer.fill((name, offset, values.detach().float().flatten()) for name, offset, values in fragments)
    return buffer


def write_fragments(folder: Path, rank: int, fragments: Iterable[Fragment]) -> dict[str, Any]:
    """One rank's file, written at once; every rank writes its own at the same time. {"bytes", "sha256"}."""
    return filled(fragments).write(fragment_file(folder, rank))

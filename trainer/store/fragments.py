"""The rank files of a committed stage or checkpoint: which piece of which parameter lies where, found out once, and read by all ranks together.

Each rank looks through its share of the files (the hash, the header) and tells the others what is in them. A file that is no larger than a rank's share of all
stays in memory while the engine is made: as many ranks under the same ZeRO stage as have written it find all their weights there, and read every byte once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.store.fragment_file import MOMENTS, fragment_file, sha256_of
from trainer.store.group import rank_and_size
from trainer.store.tensor_file import ByteFile, read_header, read_whole

_MOST_OPEN = 256
_MOST_HELD = 1.25
"""Of a rank's equal share: what a file may have to be kept in memory."""


class CorruptFile(RuntimeError):
    """A checksum failed; what held the file is set aside, so that the next try does without it."""


class Piece(NamedTuple):
    """Of a parameter, in fp32."""

    file: int
    """The rank that wrote it."""
    begin: int
    """Its first byte there."""
    offset: int
    """Its first value in the flattened parameter."""
    size: int
    """Values."""


_Table = npt.NDArray[np.int64]
"""(pieces, 5): the parameter's number, and a Piece. 46,272 pieces of a 70B on 64 ranks are 1.9 MB so; as Python's tuples they would be ten times that."""


class Fragments:
    def __init__(self, folder: Path, stored: list[str], table: _Table, files: dict[int, ByteFile], all_held: bool = False) -> None:
        """`stored`: names ("w", "exp_avg/w") by number; `all_held`: whether each file is in memory of the rank that `holder` names."""
        self.folder, self.all_held = folder, all_held
        self._numbers = {name: number for number, name in enumerate(stored)}
        self._table = table[np.lexsort((table[:, 3], table[:, 0]))]
        self._files = files

    def pieces(self, stored: str) -> list[Piece]:
        """In the order of the parameter's values; [] of what nobody has written."""
        if (number := self._numbers.get(stored)) is None:
            return []
        first, last = np.searchsorted(self._table[:, 0], [number, number + 1])
        return [Piece(*row[1:]) for row in self._table[first:last].tolist()]

    def read(self, piece: Piece, low: int, high: int) -> Tensor:
        """Values [low, high) of the flattened parameter, which lie in this piece; a view where its file is in memory."""
        return self._file(piece.file).read(piece.begin + 4 * (low - piece.offset), torch.float32, high - low)

    def release(self) -> None:
        """Lets go of files in memory, and of open ones."""
        self._files, self.all_held = {}, False

    def _file(self, number: int) -> ByteFile:
        if number not in self._files:
            if len(self._files) >= _MOST_OPEN:
                del self._files[next(n for n, file in self._files.items() if not file.held)]
            self._files[number] = ByteFile(fragment_file(self.folder, number))
        return self._files[number]


def holder(file: int, num_ranks: int) -> int:
    return file % num_ranks


def open_fragments(folder: Path, num_files: int, shapes: Mapping[str, Any]) -> Fragments:
    """By one process alone, which reads all headers. `shapes`: the names of the parameters."""
    stored, parts = _stored(shapes), []
    files: dict[int, ByteFile] = {}
    for number in range(num_files):  # by name: a listing may lag behind on NFS
        file = ByteFile(fragment_file(folder, number))
        parts.append(_pieces(number, file, stored))
        if len(files) < _MOST_OPEN:
            files[number] = file
    return Fragments(folder, stored, np.concatenate(parts), files)


def open_together(
    folder: Path, num_files: int, shapes: Mapping[str, Any], listed: Mapping[str, Any], discard: Callable[[], None]
) -> Fragments:
    """By all ranks. `listed`: the manifest's facts of the files; where one is another, rank 0 calls `discard` and all raise CorruptFile."""
    rank, num_ranks = rank_and_size()
    stored = _stored(shapes)
    looked = _look_through(folder, range(rank, num_files, num_ranks), stored, listed, num_ranks)
    told: list[Any] = [None] * num_ranks
    mine = (looked.reason, looked.pieces, all(file.held for file in looked.files.values()))
    if num_ranks > 1:
        torch.distributed.all_gather_object(told, mine)
    else:
        told = [mine]
    if bad := next((reason for reason, *_ in told if reason), None):
        if rank == 0:
            discard()
        if num_ranks > 1:
            torch.distributed.barrier()
        raise CorruptFile(f"{bad}; it is not used, and training goes on from what was saved before it")
    table = np.concatenate([part for _, parts, _ in told for part in parts])
    return Fragments(folder, stored, table, looked.files, all(held for *_, held in told))


@dataclass
class _Looked:
    files: dict[int, ByteFile]
    pieces: list[_Table]
    reason: str | None = None


def _look_through(folder: Path, numbers: range, stored: list[str], listed: Mapping[str, Any], num_ranks: int) -> _Looked:
    looked = _Looked({}, [])
    most_held = _MOST_HELD * sum(int(facts["bytes"]) for facts in listed.values()) / num_ranks
    for number in numbers:
        path = fragment_file(folder, number)
        file, looked.reason = _checked(path, listed.get(path.name), most_held)
        if looked.reason:
            break
        looked.files[number] = file or ByteFile(path)
        looked.pieces.append(_pieces(number, looked.files[number], stored))
    return looked


def _checked(path: Path, expected: Mapping[str, Any] | None, most_held: float) -> tuple[ByteFile | None, str | None]:
    """(the file in memory, if it is small enough; why it is not what its manifest says)."""
    if expected is None:  # stages of before 2026-11-21 list no files
        return None, None
    if not path.exists():
        return None, f"{path}: is missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return None, f"{path}: has {size} bytes, its manifest says {expected['bytes']}"
    file, sha256 = read_whole(path) if size <= most_held else (None, sha256_of(path))
    return file, None if sha256 == expected["sha256"] else f"{path}: its SHA-256 is not the one in its manifest"


def _stored(shapes: Mapping[str, Any]) -> list[str]:
    return [prefix + name for prefix in ("", *(f"{moment}/" for moment in MOMENTS)) for name in shapes]


def _pieces(number: int, file: ByteFile, stored: list[str]) -> _Table:
    entries, metadata = read_header(file)
    numbers = {name: n for n, name in enumerate(stored)}
    offsets = json.loads(metadata["offsets"])
    rows = [
        (numbers[name], number, entries[name].begin, offset, entries[name].shape[0]) for name, offset in offsets.items() if name in numbers
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 5)

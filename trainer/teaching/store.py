"""The files of a teacher store while they are made, on rank 0: what was read stays when a pass is stopped or killed, and the next one reads the rest.

teachers/<key>/.begun.npz      of a store that is not whole: the targets that were read, and the seconds that it took
               .answers.json   own answers, once all are there
"""

import json
import time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from data.rows.lessons import BEGUN, TOP
from trainer.store.fragment_file import sha256_of
from trainer.store.stages import sync, write_json

NOTHING = 2**32 - 1
"""No token: room that an own answer has left."""
_SAVE_EVERY_S = 60.0
Said = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""(positions in the store (n,), targets (n,), ids (n, k), log-probabilities (n, k + 1))."""


class Writer:
    """Each position is written once. Targets are kept in memory (4 of 172 bytes a position) and reach the disk after what is said of them, so those that are
    there were read."""

    _MAPS = (("ids.bin", np.uint32, TOP), ("log_probs.bin", np.float32, TOP + 1))

    def __init__(self, folder: Path, positions: int) -> None:
        self._folder, self._positions = folder, positions
        (folder / "manifest.json").unlink(missing_ok=True)
        begun = self._begun()
        self.goes_on = begun is not None
        """With what an earlier pass has read."""
        if begun is None:  # what it says of other drafts must not be believed of these
            (folder / BEGUN).unlink(missing_ok=True)
            sync(folder)
        self._tokens, self._seconds = begun or (np.full(positions, NOTHING, dtype=np.uint32), 0.0)
        self._maps = [
            np.memmap(folder / f".{name}", kind, "r+" if begun else "w+", shape=(positions, width)) for name, kind, width in self._MAPS
        ]
        self._since = self._saved = time.monotonic()

    def _begun(self) -> tuple[npt.NDArray[np.uint32], float] | None:
        try:
            with np.load(self._folder / BEGUN, allow_pickle=False) as arrays:
                tokens, seconds = arrays["tokens"], float(arrays["seconds"])
            sizes = [(self._folder / f".{name}").stat().st_size for name, *_ in self._MAPS]
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None
        whole = len(tokens) == self._positions and sizes == [4 * width * self._positions for *_, width in self._MAPS]
        return (tokens, seconds) if whole else None

    def has(self, places: npt.NDArray[np.int64]) -> bool:
        """Whether all of these positions were read."""
        return bool((self._tokens[places] != NOTHING).all())

    def write(self, told: list[Said]) -> None:
        for places, targets, *values in told:
            self._tokens[places] = targets
            for array, value in zip(self._maps, values, strict=True):
                array[places] = value
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """What was read until now, durably."""
        self._flush()
        draft = self._folder / ".draft.npz"
        np.savez(draft, tokens=self._tokens, seconds=np.array(self._took()))
        sync(draft)
        draft.replace(self._folder / BEGUN)
        self._saved = time.monotonic()

    def _flush(self) -> None:
        for array, (name, *_) in zip(self._maps, self._MAPS, strict=True):
            array.flush()
            sync(self._folder / f".{name}")

    def _took(self) -> float:
        return self._seconds + time.monotonic() - self._since

    def answers(self) -> dict[int, list[int]] | None:
        """Own answers that an earlier pass has left."""
        try:
            return {int(item): tokens for item, tokens in json.loads((self._folder / ".answers.json").read_text()).items()}
        except (OSError, ValueError):
            return None

    def keep_answers(self, answers: dict[int, list[int]]) -> None:
        write_json(self._folder / ".answers.json", {str(item): tokens for item, tokens in answers.items()})

    def commit(self, facts: dict[str, Any], room_left: int) -> None:
        """`room_left`: positions that own answers have left."""
        unread = int((self._tokens == NOTHING).sum())
        assert unread == room_left, f"{unread} of {self._positions} positions were not read, {room_left} hold nothing"
        self._flush()
        draft = self._folder / ".tokens.bin"
        self._tokens.tofile(draft)
        sync(draft)
        self._maps = []
        drafts = {name: self._folder / f".{name}" for name in ("tokens.bin", *(name for name, *_ in self._MAPS))}
        files = {name: {"bytes": draft.stat().st_size, "sha256": sha256_of(draft)} for name, draft in drafts.items()}
        for name, draft in drafts.items():  # between here and the manifest a kill loses the pass: nothing that takes long stands there
            draft.replace(self._folder / name)
        write_json(self._folder / "manifest.json", {"positions": self._positions, "seconds": self._took(), **facts, "files": files})
        for left in (BEGUN, ".draft.npz", ".answers.json"):
            (self._folder / left).unlink(missing_ok=True)

"""Stages that an earlier version keyed otherwise: what was trained under its old key is used under it, and never trained again in silence.

    runs/<name>/known-as.json    {key: the old key under which the stage lies}

Until 2026-11-28 a named model stood in keys by its files' sizes and times, now by their contents; and what a stage's aids read (which tokens occur
in answers, where sentences begin) stood in none. An old key says less than a new one: it is taken for one new key only, the first that asks.
"""

import json
from collections.abc import Callable
from pathlib import Path

from trainer.store.checkpoint import checkpoints
from trainer.store.stages import StageStore, write_json

FILE = "known-as.json"


class Names:
    """Under which key each stage of a run folder lies."""

    def __init__(self, run_folder: Path, elsewhere: Callable[[str], bool] = lambda key: False) -> None:
        """`elsewhere`: whether a mirror holds the stage."""
        self._elsewhere = elsewhere
        self._path, self._store = run_folder / FILE, StageStore(run_folder)
        self._known: dict[str, str] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.found: list[str] = []
        """Old keys that were recognised now."""

    def of(self, key: str, old: str) -> str:
        """`key`, or the old one where a stage lies under that and none under the new."""
        if key in self._known:
            return self._known[key]
        if key == old or self._there(key) or old in self._known.values() or not self._there(old):
            return key
        self._known[key] = old
        self.found.append(old)
        return old

    def save(self) -> None:
        if self.found:
            write_json(self._path, self._known)

    def _there(self, key: str) -> bool:
        return self._store.manifest(key) is not None or bool(checkpoints(self._store.folder(key))) or self._elsewhere(key)

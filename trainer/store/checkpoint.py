"""Checkpoints inside a stage: stages/<key>/checkpoints/step-00000123/, committed by a manifest that is put in place last.

Every rank writes its own fragments of weights and moments; rank 0 waits for all files and commits. Only the copy into a kept buffer
holds training up: writing, hashing and committing happen in a thread. Ranks meet through files, not collectives: a collective in a
second thread would mix with those of training.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from console import RunError
from data.ground.contents import damage_of
from data.ground.durable import await_file, late_s
from failpoints import hit
from trainer.store.fragment_file import Fragment, FragmentBuffer, fragment_file
from trainer.store.stages import write_json

_PEERS_TIMEOUT_S = 3600.0  # for the slowest rank's file
_HURRY_S = 60.0  # for the same, or twice what our own took, once training waits for it; longer where storage may show it late


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    step: int
    """The first step that is not in it."""
    manifest: dict[str, Any]


def checkpoints(stage_folder: Path) -> list[Checkpoint]:
    """Committed ones, the newest first. What has no readable manifest is not there."""
    found = []
    for folder in sorted((stage_folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            found.append(Checkpoint(folder, int(manifest["step"]), manifest))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def is_whole(folder: Path) -> bool:
    """Whether what was made once lies there, with a manifest, and is what that says."""
    try:
        return first_bad_file(folder, dict(json.loads((folder / "manifest.json").read_text())["files"])) is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def first_bad_file(folder: Path, files: dict[str, Any]) -> str | None:
    """Why `folder` is not what its manifest lists, or None."""
    return next((why for name, expected in sorted(files.items()) if (why := damage_of(folder / name, expected))), None)


def await_committed(folder: Path, part: str = "") -> None:
    """Until this node sees a committed stage or checkpoint (FileNotFoundError where it does not), and the files below `part` that its manifest lists:
    what is missing then is damage, and for those to say who check them."""
    manifest = json.loads(await_file(folder / "manifest.json").read_text())
    with suppress(FileNotFoundError):
        for name in manifest.get("files", {}):
            if name.startswith(part):
                await_file(folder / name)


def await_model(folder: Path) -> None:
    """The same of a model folder, which the driver may have made a moment ago."""
    await_file(folder / "config.json")
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        with suppress(FileNotFoundError):
            await_file(single)
            return
    for name in set(json.loads(await_file(index).read_text())["weight_map"].values()):
        await_file(folder / name)


def set_aside(folder: Path) -> None:
    """Takes a damaged folder out of the way without destroying what somebody may want to look at; one per place is kept."""
    target = folder.with_name(f"corrupt-{folder.name}")
    shutil.rmtree(target, ignore_errors=True)
    folder.replace(target)


def clear_uncommitted(stage_folder: Path) -> None:
    """Removes what saves left that never came to their manifest."""
    for folder in (stage_folder / "checkpoints").glob("step-*"):
        if not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


_HELD_S = 120.0  # a hold that was not renewed for so long is that of a process that is gone


def hold(place: Path) -> None:
    """Whoever copies this checkpoint needs it: it is not removed, however many newer ones there are. To be renewed every few seconds."""
    if place.exists():
        (place / "held").touch()


def release(place: Path) -> None:
    (place / "held").unlink(missing_ok=True)


def _is_held(place: Path) -> bool:
    try:
        return time.time() - (place / "held").stat().st_mtime < _HELD_S
    except OSError:
        return False


class Saver:
    """Saves one rank of one stage. OSErrors are counted, not raised: training goes on with the older checkpoint."""

    def __init__(self, stage_folder: Path, rank: int, world_size: int, facts: dict[str, Any], keep: int, most_failures: int) -> None:
        self._stage_folder, self._rank, self._world_size = stage_folder, rank, world_size
        self._facts, self._keep, self._most_failures = facts, keep, most_failures
        self._buffer = FragmentBuffer()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._failures = 0
        self._hurry = threading.Event()
        self.blocked_s = 0.0
        """How long training has waited for saves, all together."""
        self.took_s = 0.0
        """From the copy to the commit (on other ranks than 0: to the end of their own part), of the last save that ended."""
        self.failed: str | None = None
        """Why the save before this moment failed; None: it did not."""
        self.on_commit: Callable[[Path], None] = lambda folder: None
        """Called on rank 0, in the thread that writes."""
        self.notices: list[str] = []
        """What went wrong since somebody looked."""

    @property
    def busy(self) -> bool:
        """Whether a save is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, fragments: Any, facts: dict[str, Any]) -> None:
        """Copies now, writes behind; waits first for a save that is still under way. RunError after too many failures in a row."""
        started = time.monotonic()
        self.wait()
        listed: list[Fragment] = list(fragments)
        self._buffer.fill(listed)
        self._hurry.clear()
        self._thread = threading.Thread(target=self._write, args=(step, facts), daemon=True, name="checkpoint")
        self._thread.start()
        self.blocked_s += time.monotonic() - started

    def wait(self) -> None:
        """Until the last save is on disk (and, on rank 0, committed)."""
        if self._thread is None:
            return
        self._hurry.set()
        self._thread.join()
        self._thread = None
        self.failed = None if self._failure is None else str(self._failure)
        if self._failure is None:
            self._failures = 0
            return
        self._failures += 1
        failure, self._failure = self._failure, None
        self.notices.append(f"a checkpoint could not be saved ({failure}); training goes on with the one before")
        if self._failures >= self._most_failures:
            raise RunError(f"{self._failures} checkpoints in a row could not be saved: {failure}")

    def _write(self, step: int, facts: dict[str, Any]) -> None:
        folder = self._stage_folder / "checkpoints" / f"step-{step:08d}"
        done = folder / f"rank-{self._rank:05d}.json"
        begun = time.monotonic()
        try:
            if (folder / "manifest.json").exists():  # saved by an earlier try: same step, same state
                return
            started = time.monotonic()
            try:
                file = fragment_file(folder, self._rank)
                write_json(done, {file.name: self._buffer.write(file)})
            except BaseException as error:
                write_json(done, {"failed": str(error)})
                raise
            if self._rank == 0:
                self._commit(folder, step, facts, max(_HURRY_S, late_s(), 2 * (time.monotonic() - started)))
        except BaseException as error:  # the thread has nobody to raise to
            self._failure = error
        finally:
            self.took_s = time.monotonic() - begun

    def _commit(self, folder: Path, step: int, facts: dict[str, Any], hurry_s: float) -> None:
        files: dict[str, Any] = {}
        deadline = time.monotonic() + _PEERS_TIMEOUT_S
        for rank in range(self._world_size):
            done = folder / f"rank-{rank:05d}.json"
            while not done.exists():
                if self._hurry.is_set():
                    deadline = min(deadline, time.monotonic() + hurry_s)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"rank {rank} did not write its part of {folder.name}")
                time.sleep(0.02)
                with suppress(OSError):
                    os.listdir(folder)  # makes some shared file systems look again
            written = json.loads(done.read_text())
            if "failed" in written:
                raise OSError(f"rank {rank}: {written['failed']}")
            files |= written
        hit("checkpoint.before_manifest")
        write_json(folder / "manifest.json", {**self._facts, **facts, "step": step, "world_size": self._world_size, "files": files})
        self.on_commit(folder)
        hit("checkpoint.after_manifest")
        for old in [saved for saved in checkpoints(self._stage_folder)[self._keep :] if not _is_held(saved.folder)]:
            (old.folder / "manifest.json").unlink()  # first: a half-removed one must not look committed
            hit("checkpoint.cleanup")
            shutil.rmtree(old.folder, ignore_errors=True)


def rank_zero_says(value: Any) -> Any:
    """One decision for all ranks: on shared storage they may see a file at different moments."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]

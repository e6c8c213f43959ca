"""A second copy of what is committed, in a place of pyarrow's (trainer/store/mirror_place.py). The run folder stays the truth.

Files first, the manifest last: an object appears whole or not at all, so a copy that broke off is no stage. One place is copied at a time, by all ranks at
once, each its own files (trainer/store/mirror_rank.py); the driver says which place it is, copies what no rank does, and adds the manifest. A mirror that fails is
said and costs nothing else.

    runs/<name>/mirroring/now.json           what is copied: {"name", "files": {file: sha256}}
    runs/<name>/mirroring/rank-00000.json    that a rank is at it
    <place>/.copied/<file>                   in the mirror: the sha256 of a file that is there; goes when the manifest comes
"""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from console import UserError, say
from trainer.store.checkpoint import checkpoints, first_bad_file, hold, release
from trainer.store.mirror_place import Place
from trainer.store.stages import StageStore, write_json

_EVERY_S = 5.0
_STREAMS = 8
"""Of the driver, for what no rank copies."""
GONE_S = 30.0
"""A rank that has not said for so long that it copies is not waited for."""


def now_file(run_folder: Path) -> Path:
    return run_folder / "mirroring" / "now.json"


def rank_file(run_folder: Path, rank: int) -> Path:
    return run_folder / "mirroring" / f"rank-{rank:05d}.json"


def marker(name: str, file: str) -> str:
    return f"{name}/.copied/{file.replace('/', '%2F')}"


class Mirror:
    """The driver's side; use it as a context manager while training."""

    def __init__(self, uri: str, run_folder: Path) -> None:
        self._place, self._run_folder = Place(uri, run_folder.name), run_folder
        self._pushed: set[str] = set()
        self._answers: bool | None = None
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Copies what is left, then ends."""
        self._stop.set()
        self._thread.join()
        self.push()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.push()

    def push(self) -> None:
        """Committed stages and each unfinished stage's newest checkpoint that are not there yet; one after the other, the newest state of things each time."""
        tried: set[str] = set()
        while waiting := [name for name in self._waiting() if name not in tried]:
            stages = [name for name in waiting if "/checkpoints/" not in name]
            if len(stages) > 2:
                self._tell_once("stages", f"mirror: cannot keep up: {len(stages)} stages wait to be copied")
            name = waiting[0]
            tried.add(name)
            try:
                self._push(self._run_folder / name, name)
                self._pushed.add(name)
                self._prune(name)
            except (OSError, ValueError) as error:  # also a checkpoint that was cleaned up meanwhile
                if (self._run_folder / name).exists():
                    say(f"mirror: {name} could not be copied ({str(error).splitlines()[0]}); trying again")

    def _waiting(self) -> list[str]:
        """Names of places that are not there yet, finished stages first."""
        stages = sorted((self._run_folder / "stages").glob("*"))
        done = [stage for stage in stages if (stage / "manifest.json").exists()]
        newest = [saved[0].folder for stage in stages if stage not in done and (saved := checkpoints(stage))]
        names = [place.relative_to(self._run_folder).as_posix() for place in [*done, *newest]]
        return [name for name in names if name not in self._pushed]

    def _push(self, place: Path, name: str) -> None:
        text = (place / "manifest.json").read_bytes()
        listed: dict[str, Any] = json.loads(text).get("files", {})
        if self._place.exists(f"{name}/manifest.json") and self._place.json(f"{name}/manifest.json").get("files") == listed:
            return  # other files: the stage was trained anew
        beside = [path.relative_to(place).as_posix() for path in place.glob("hf/*")] + ["metrics.jsonl"]
        files = {file: facts["sha256"] for file, facts in listed.items()} | {file: "" for file in beside if file not in listed}
        files = {file: sha256 for file, sha256 in files.items() if (place / file).exists()}
        started = time.monotonic()
        write_json(now_file(self._run_folder), {"name": name, "files": {file: sha256 for file, sha256 in files.items() if sha256}})
        try:
            self._copy(place, name, files)
        finally:
            now_file(self._run_folder).unlink(missing_ok=True)
            release(place)
        self._place.write(f"{name}/manifest.json", text)
        self._place.delete(f"{name}/.copied")
        self._tell_pace(place, name, time.monotonic() - started, sum(facts["bytes"] for facts in listed.values()))

    def _copy(self, place: Path, name: str, files: dict[str, str]) -> None:
        """Until every file is there: what ranks have copied is believed by its marker, what none is copying is copied here."""
        left = dict(files)
        numbers = {file: number for number, file in enumerate(sorted(file for file, sha256 in files.items() if sha256))}
        while left:
            hold(place)
            for file in self._marked(name, left):
                del left[file]
            mine = [file for file in left if file not in numbers or not self._is_copied_by(owner(file, numbers[file]))]
            with ThreadPoolExecutor(_STREAMS) as streams:
                for file in streams.map(lambda file: self._copy_here(place, name, file), mine):
                    del left[file]
            if left:
                time.sleep(0.5)

    def _copy_here(self, place: Path, name: str, file: str) -> str:
        self._place.up(place / file, f"{name}/{file}", _seldom(lambda: hold(place)))
        return file

    def _marked(self, name: str, left: dict[str, str]) -> list[str]:
        there = {file.replace("%2F", "/") for file in self._place.names(f"{name}/.copied")}
        return [
            file for file, sha256 in left.items() if sha256 and file in there and self._place.read(marker(name, file)).decode() == sha256
        ]

    def _is_copied_by(self, who: int) -> bool:
        """Whether a rank that has this file to copy is at work."""
        try:
            at_work = [path for path in (self._run_folder / "mirroring").glob("rank-*.json") if time.time() - path.stat().st_mtime < GONE_S]
            counts = {int(json.loads(path.read_text())["world_size"]) for path in at_work}
        except (OSError, ValueError, KeyError):
            return False
        return any(rank_file(self._run_folder, who % count) in at_work for count in counts)

    def _prune(self, name: str) -> None:
        """Checkpoints that the run folder has dropped: all older ones than a newer copy, or than the finished stage."""
        stage, _, newest = name.partition("/checkpoints/")
        here = {saved.folder.name for saved in checkpoints(self._run_folder / stage)} if newest else set()
        for old in self._place.names(f"{stage}/checkpoints"):
            if old not in here and (not newest or old < newest):
                self._place.delete(f"{stage}/checkpoints/{old}")

    def _tell_pace(self, place: Path, name: str, seconds: float, size: int) -> None:
        """Where a newer checkpoint was committed meanwhile, and they come faster than they can be copied."""
        if "/checkpoints/" not in name:
            return
        newer = [saved.folder / "manifest.json" for saved in checkpoints(place.parents[1])][:2]
        if len(newer) == 2 and newer[0].parent != place and seconds > (every := newer[0].stat().st_mtime - newer[1].stat().st_mtime):
            self._tell_once(
                place.parents[1].name,
                f"mirror: cannot keep up: {name} took {seconds:.0f} s ({size / max(seconds, 1e-3) / 1e9:.2g} GB/s), and one comes every {every:.0f} s; "
                "those between are left out",
            )

    def _tell_once(self, topic: str, message: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            say(message)

    def drop(self, name: str) -> None:
        """What the run folder has dropped for good (python -m trainer gc --delete)."""
        self._place.delete(name)

    def fetch(self, keys: list[str], useless: Callable[[dict[str, Any]], bool] = lambda _: False) -> list[str]:
        """Brings stages and checkpoints of `keys` that the run folder lacks; returns their names. Damaged copies are refused, and whose manifests are useless(…)."""
        store, fetched = StageStore(self._run_folder), []
        for key in keys:
            if store.manifest(key) is not None or self.unreachable():
                continue
            names = [f"stages/{key}"] if self._place.exists(f"stages/{key}/manifest.json") else self._newest_checkpoint(key)
            for name in names:
                if not useless(self._place.json(f"{name}/manifest.json")) and self._fetch(name):
                    fetched.append(name)
        return fetched

    def holds(self, key: str) -> bool:
        """Whether the stage, or a checkpoint of it, is there."""
        if self.unreachable():
            return False
        return self._place.exists(f"stages/{key}/manifest.json") or bool(self._newest_checkpoint(key))

    def unreachable(self) -> bool:
        """Whether the place does not answer, asked once; said, and no reason to wait where the run folder has stages. UserError where it has none: they may lie there."""
        if self._answers is None:
            try:
                self._place.exists("manifest.json")
                self._answers = True
            except OSError as error:
                self._answers, why = False, str(error).splitlines()[0]
                if not any((self._run_folder / "stages").glob("*/manifest.json")):
                    raise UserError(
                        f"trainer.checkpoint.mirror: it cannot be read ({why}), and this run folder has no stage yet, which may lie there; try again, or leave the mirror out"
                    ) from None
                say(f"mirror: it cannot be read ({why}); this run goes on with what its folder has")
        return not self._answers

    def push_file(self, name: str) -> None:
        """A small file of the run folder."""
        try:
            if (self._run_folder / name).exists():
                self._place.write(name, (self._run_folder / name).read_bytes())
        except OSError as error:
            say(f"mirror: {name} could not be copied ({str(error).splitlines()[0]})")

    def fetch_file(self, name: str) -> None:
        """The same back, where the run folder lacks it."""
        if not (self._run_folder / name).exists() and not self.unreachable() and self._place.exists(name):
            self._place.down(name, self._run_folder / name)

    def _newest_checkpoint(self, key: str) -> list[str]:
        names = [f"stages/{key}/checkpoints/{name}" for name in self._place.names(f"stages/{key}/checkpoints")]
        here = {c.folder.name for c in checkpoints(self._run_folder / "stages" / key)}
        return [name for name in names if self._place.exists(f"{name}/manifest.json") and Path(name).name not in here][-1:]

    def _fetch(self, name: str) -> bool:
        place, manifest = self._run_folder / name, self._place.json(f"{name}/manifest.json")
        # An object's name may be anything; as a path ".." would lead out of the run folder.
        apart = ("checkpoints", "..", ".copied")
        files = [f for f in self._place.names(name, recursive=True) if f != "manifest.json" and not set(f.split("/")) & set(apart)]
        with ThreadPoolExecutor(_STREAMS) as streams:
            list(streams.map(lambda file: self._place.down(f"{name}/{file}", place / file), files))
        if bad := first_bad_file(place, manifest.get("files", {})):
            say(f"mirror: {bad}; that copy is not used")
            return False
        write_json(place / "manifest.json", manifest)
        return True


def owner(file: str, number: int) -> int:
    """Whose file it is: of a rank's own its number, of others by turns; to be taken modulo the number of ranks."""
    stem = Path(file).stem
    return int(stem.removeprefix("rank-")) if stem.startswith("rank-") else number


def _seldom(act: Callable[[], None]) -> Callable[[], None]:
    last = time.monotonic()

    def call() -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            last = time.monotonic()
            act()

    return call

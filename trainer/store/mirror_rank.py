"""A rank's share of what is mirrored: its own files, copied beside training while the driver says which place it is about (trainer/store/mirror.py)."""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.store.mirror import GONE_S, marker, now_file, owner, rank_file
from trainer.store.mirror_place import Place
from trainer.store.stages import write_json

_EVERY_S = 1.0


class MirrorRank:
    """A thread until close(); a file that cannot be copied is left to the driver."""

    def __init__(self, uri: str, run_folder: Path, rank: int, world_size: int) -> None:
        self._place, self._run_folder, self._rank, self._world_size = Place(uri, run_folder.name), run_folder, rank, world_size
        self._done: set[tuple[str, str, str]] = set()
        self._told = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")
        self._say_at_work()
        self._thread.start()

    def close(self) -> None:
        """At once: the driver copies what is left."""
        self._stop.set()
        self._thread.join(timeout=5)
        rank_file(self._run_folder, self._rank).unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            with suppress(InterruptedError, ValueError):
                self._moving()
                if (now := _read(now_file(self._run_folder))) and not self._copied_share(json.loads(now)):
                    rank_file(self._run_folder, self._rank).unlink(missing_ok=True)
                    self._stop.wait(GONE_S)

    def _copied_share(self, now: dict[str, Any]) -> bool:
        """False where a file could not be copied."""
        name, files = now["name"], now["files"]
        for number, file in enumerate(sorted(files)):
            fact = (name, file, files[file])
            if owner(file, number) % self._world_size != self._rank or fact in self._done:
                continue
            try:
                self._place.up(self._run_folder / name / file, f"{name}/{file}", self._moving)
                self._place.write(marker(name, file), files[file].encode())
            except InterruptedError:
                raise
            except OSError:
                return False
            self._done.add(fact)
        return True

    def _moving(self) -> None:
        if self._stop.is_set():
            raise InterruptedError
        if time.monotonic() - self._told > GONE_S / 6:
            self._say_at_work()

    def _say_at_work(self) -> None:
        self._told = time.monotonic()
        with suppress(OSError):
            write_json(rank_file(self._run_folder, self._rank), {"world_size": self._world_size}, durable=False)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None

"""What a training process says about itself while it works: its phase and step, twice a second, in runs/<name>/heartbeats/."""

import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.store import write_json

BEAT_S = 0.5


def heartbeat_folder(run_folder: Path) -> Path:
    return run_folder / "heartbeats"


def stop_file(run_folder: Path) -> Path:
    """While it exists, workers save at the next step and end."""
    return run_folder / "stop-requested"


class Heartbeat:
    """A thread that beats until close(). SIGUSR1 makes the process write all its stacks to logs/stacks-<rank>.txt."""

    def __init__(self, run_folder: Path, rank: int, node: str, first_limit_s: float, leaving: Callable[[], bool] = lambda: False) -> None:
        self._path = heartbeat_folder(run_folder) / f"rank-{rank:05d}.json"
        self._stop_file = stop_file(run_folder)
        self._about = {"rank": rank, "pid": os.getpid(), "node": node, "host": socket.gethostname()}
        self._phase: tuple[str, int, float, float] = ("start", -1, time.monotonic(), first_limit_s)
        self.stop_requested = False
        self._leaving = leaving
        self._told: set[str] = set()
        self._beats = 0
        self._events = (run_folder / "logs" / f"events-{rank:05d}.jsonl").open("a")
        self._stacks = (run_folder / "logs" / f"stacks-{rank:05d}.txt").open("a")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        self._closed = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")
        self._thread.start()

    def enter(self, phase: str, limit_s: float, step: int = -1) -> None:
        """From now on in `phase`; longer than `limit_s` counts as hung."""
        self._phase = (phase, step, time.monotonic(), limit_s)

    def extend(self, limit_s: float) -> None:
        """The phase may last so long, counted from when it was entered, if that is more than it was given."""
        phase, step, since, before_s = self._phase
        self._phase = (phase, step, since, max(before_s, limit_s))

    def tell(self, message: str, **facts: Any) -> None:
        """A line that the driver shows to the user; `key` and `step` make it name that step's items."""
        self._events.write(json.dumps({"message": message, **facts}) + "\n")
        self._events.flush()

    def tell_once(self, topic: str, message: str) -> None:
        """Not again what this process has told on this topic."""
        if topic not in self._told:
            self._told.add(topic)
            self.tell(message)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)
        self._path.unlink(missing_ok=True)
        faulthandler.unregister(signal.SIGUSR1)
        self._events.close()

    def _run(self) -> None:
        while not self._closed.wait(BEAT_S):
            with suppress(OSError):  # a full disk must not end the watch
                self._beat()

    def _beat(self) -> None:
        if not self.stop_requested and self._leaving():
            if self._about["rank"] == 0:
                self.tell("a node of this group is to be taken away: saving at the next step, then going on with the nodes that stay")
            self.stop_requested = True
        self.stop_requested = self.stop_requested or self._stop_file.exists()
        phase, step, since, limit_s = self._phase
        self._beats += 1
        beat: dict[str, Any] = {"phase": phase, "step": step, "for_s": time.monotonic() - since, "limit_s": limit_s, "beat": self._beats}
        write_json(self._path, {**self._about, **beat}, durable=False)

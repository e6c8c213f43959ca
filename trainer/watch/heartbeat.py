"""What a training process says about itself while it works: its phase and step, twice a second; through Ray (trainer/watch/beat_board.py), and in
runs/<name>/heartbeats/ for people and for where there is no Ray or it does not answer."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from trainer.store.stages import write_json
from trainer.watch import stacks

BEAT_S = 0.5
_SAVING = ("save", "load")
"""Phases in which storage has all the work it can do."""


def heartbeat_folder(run_folder: Path) -> Path:
    return run_folder / "heartbeats"


def stop_file(run_folder: Path) -> Path:
    """While it exists, workers save at the next step and end."""
    return run_folder / "stop-requested"


class Sending(Protocol):
    """trainer.watch.beat_board.Line."""

    stop_requested: bool

    @property
    def is_up(self) -> bool: ...
    def send(self, beat: dict[str, Any], at_once: bool = False) -> None: ...
    def close(self, beat: dict[str, Any]) -> None: ...


class Heartbeat:
    """A thread that beats until close(), and one that writes beats to files: storage that stands still must not silence the first. The thread that
    makes it is the one that trains; each beat says where its stack and the other threads' can be had (trainer/watch/stacks.py)."""

    def __init__(
        self,
        run_folder: Path,
        rank: int,
        node: str,
        first_limit_s: float,
        leaving: Callable[[], bool] = lambda: False,
        line: Sending | None = None,
    ) -> None:
        self._path = heartbeat_folder(run_folder) / f"rank-{rank:05d}.json"
        self._stop_file = stop_file(run_folder)
        written = run_folder / "logs" / f"stacks-{rank:05d}.txt"
        self._about = {"rank": rank, "pid": os.getpid(), "node": node, "host": socket.gethostname(), "stacks": str(written)}
        self._phase: tuple[str, int, float, float] = ("start", -1, time.monotonic(), first_limit_s)
        self.stop_requested = False
        self._leaving, self._line = leaving, line
        self.saving: Callable[[], bool] = lambda: False
        """Whether a checkpoint is being written behind training."""
        self._committed: list[str] = []
        self._told: set[str] = set()
        self._beats = 0
        self._events = (run_folder / "logs" / f"events-{rank:05d}.jsonl").open("a")
        self._stacks = written.open("a")
        self._trains = threading.get_native_id()
        stacks.answer(self._stacks)
        self._closed = threading.Event()
        self._write(self._beat())
        self._threads = [threading.Thread(target=run, daemon=True, name=name) for run, name in self._runs()]
        for thread in self._threads:
            thread.start()

    def enter(self, phase: str, limit_s: float, step: int = -1) -> None:
        """From now on in `phase`; longer than `limit_s` counts as hung."""
        self._phase = (phase, step, time.monotonic(), limit_s)

    def extend(self, limit_s: float) -> None:
        """The phase may last so long, counted from when it was entered, if that is more than it was given."""
        phase, step, since, before_s = self._phase
        self._phase = (phase, step, since, max(before_s, limit_s))

    def committed(self, name: str) -> None:
        """The driver must find this file of the run folder before it goes on, however late storage shows it."""
        self._committed = [*self._committed[-1:], name]
        if self._line:
            self._line.send(self._beat(), at_once=True)

    def tell(self, message: str, **facts: Any) -> None:
        """A line that the driver shows to the user; `key` and `step` make it name that step's items."""
        with suppress(OSError):  # a full disk, which may be what it tells of: training goes on
            self._events.write(json.dumps({"message": message, **facts}) + "\n")
            self._events.flush()

    def tell_once(self, topic: str, message: str) -> None:
        """Not again what this process has told on this topic."""
        if topic not in self._told:
            self._told.add(topic)
            self.tell(message)

    def close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=5)
        if self._line:
            self._line.close({**self._beat(), "closed": True})
        self._path.unlink(missing_ok=True)
        stacks.answer_no_more()
        self._events.close()

    def _runs(self) -> list[tuple[Callable[[], None], str]]:
        def beats() -> None:
            while not self._closed.wait(BEAT_S):
                if self._line:
                    self._line.send(self._beat())

        def files() -> None:
            while not self._closed.wait(BEAT_S):
                with suppress(OSError):  # a full disk must not end the watch
                    self._write(self._beat())

        return [(files, "heartbeat-file"), *([(beats, "heartbeat")] if self._line else [])]

    def _beat(self) -> dict[str, Any]:
        self._look_for_stops()
        phase, step, since, limit_s = self._phase
        self._beats += 1
        beat = {"phase": phase, "step": step, "for_s": time.monotonic() - since, "limit_s": limit_s, "beat": self._beats}
        saving = phase in _SAVING or self.saving()
        return {**self._about, **beat, "saving": saving, "committed": self._committed, "threads": stacks.threads(self._trains)}

    def _look_for_stops(self) -> None:
        if not self.stop_requested and self._leaving():
            self.stop_requested = True
            if self._about["rank"] == 0:
                self.tell_once(
                    "leaving", "a node of this group is to be taken away: saving at the next step, then going on with the nodes that stay"
                )
        # Where Ray brings the word, the file is not asked: storage that is late shows one of the last run.
        asked = self._line.stop_requested if self._line and self._line.is_up else self._stop_file.exists()
        self.stop_requested = self.stop_requested or asked

    def _write(self, beat: dict[str, Any]) -> None:
        write_json(self._path, beat, durable=False)

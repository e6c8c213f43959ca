"""The driver's eye on its workers: reads heartbeats, names who hangs in what, has stacks written, kills the hung for a restart.

Ray notices a process that died, not one that stands still: a stopped worker went unnoticed for 88 s. Two signs: a heartbeat that
no longer changes (the process is stopped, its node is gone or its disk), and a phase that lasts longer than its own limit (the
process waits in a collective, a lock or a read). Beats come through Ray and in files, and the newer one counts. While ranks save or load, silence
counts only when it is long: storage that takes a terabyte in a minute may hold up everything else.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.watch.heartbeat import heartbeat_folder

SILENT_S = 30.0
"""A beat comes every half second; loading or copying may hold Python's lock for some seconds."""
SAVING_SILENT_S = 300.0
"""The same while anything is saved or loaded."""

Kill = Callable[[list[dict[str, Any]], list[dict[str, Any]]], None]
"""(beats of all ranks: write stacks; beats of those to kill)."""


class Watchdog:
    """poll() twice a second or so; returns a line when it acted."""

    def __init__(self, run_folder: Path, kill: Kill, through_ray: Callable[[], dict[int, dict[str, Any]]] = dict) -> None:
        """`through_ray`: beats by rank that came another way than in files."""
        self._folder, self._kill, self._through_ray = heartbeat_folder(run_folder), kill, through_ray
        self.committed: set[str] = set()
        """Files of the run folder that ranks have put in place."""
        self._seen: dict[int, tuple[tuple[int, int], float, dict[str, Any]]] = {}
        """rank → ((pid, beat), when it was first seen, beat)."""
        self._killed: set[int] = set()

    def look(self) -> dict[int, dict[str, Any]]:
        """The last word of each rank, from wherever it came."""
        beats = _newest(_read_beats(self._folder), self._through_ray())
        now = time.monotonic()
        self.committed |= {name for beat in beats.values() for name in beat.get("committed", [])}
        self._seen = {rank: entry for rank, entry in self._seen.items() if rank in beats}
        for rank, beat in beats.items():
            pid, number = beat["pid"], beat["beat"]
            if rank not in self._seen or self._seen[rank][0][0] != pid or self._seen[rank][0][1] < number:
                self._seen[rank] = ((pid, number), now, beat)
        return beats

    def poll(self) -> str | None:
        beats = {rank: beat for rank, beat in self.look().items() if not beat.get("closed")}
        self._seen = {rank: entry for rank, entry in self._seen.items() if rank in beats}
        now = time.monotonic()
        limit_s = SAVING_SILENT_S if any(b.get("saving") for b in beats.values()) else SILENT_S
        silent = [b for _, at, b in self._seen.values() if now - at > limit_s and b["pid"] not in self._killed]
        slow = [b for _, _, b in self._seen.values() if b["for_s"] > b["limit_s"] and b["pid"] not in self._killed]
        culprits = silent or slow
        if not culprits:
            return None
        self._killed |= {beat["pid"] for beat in beats.values()}
        self._kill(list(beats.values()), culprits)
        if silent:
            return f"{_names(silent)} silent for {limit_s:.0f} s: killed for a restart; stacks of all ranks are in logs/stacks-*.txt"
        worst = max(slow, key=lambda b: b["for_s"])
        return (
            f"{_names(slow)} for {worst['for_s']:.0f} s, longer than {worst['limit_s']:.0f} s: "
            "killed for a restart; stacks of all ranks are in logs/stacks-*.txt"
        )


class Events:
    """New lines of logs/events-*.jsonl, from where the files ended when this began."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / "logs"
        self._read = {path: path.stat().st_size for path in self._folder.glob("events-*.jsonl")}

    def new(self) -> list[dict[str, Any]]:
        """Each {message, and maybe key and step}."""
        events = []
        for path in sorted(self._folder.glob("events-*.jsonl")):
            try:
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    whole, newline, _ = file.read().rpartition(b"\n")
            except OSError:  # shared storage; the next look sees it
                continue
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                with suppress(ValueError):  # torn: a full disk took half of it
                    events.append(json.loads(line))
        return events


def _read_beats(folder: Path) -> dict[int, dict[str, Any]]:
    beats = {}
    for path in folder.glob("rank-*.json"):
        try:
            beat = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        beats[beat["rank"]] = beat
    return beats


def _newest(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Of each rank the later word. A process that another has taken the place of says nothing more: the one that Ray knows is the newer."""
    found = dict(one)
    for rank, beat in other.items():
        if rank not in found or found[rank]["pid"] != beat["pid"] or found[rank]["beat"] <= beat["beat"]:
            found[rank] = beat
    return found


def _names(beats: list[dict[str, Any]]) -> str:
    places = [b["phase"] + (f", step {b['step'] + 1}" if b["step"] >= 0 else "") for b in beats]
    named = ", ".join(f"{b['rank']} (phase {place})" for b, place in zip(beats, places, strict=True))
    return f"rank{'s' if len(beats) > 1 else ''} {named}"

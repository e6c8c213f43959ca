"""Heartbeats through Ray: an actor on the driver's node that workers tell and the driver asks. Storage that is busy or late holds none of them up."""

import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ASK_S = 5.0
_LOST_S = 5.0
"""A beat that has not arrived for so long: the line is down, and files must do."""


class _Board:
    def __init__(self) -> None:
        self._beats: dict[int, dict[str, Any]] = {}
        self._stop = False

    def beat(self, beat: dict[str, Any]) -> bool:
        self._beats[beat["rank"]] = beat
        return self._stop

    def read(self) -> dict[int, dict[str, Any]]:
        return self._beats

    def stop(self) -> None:
        self._stop = True


class Board:
    """The driver's end."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.actor: Any = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()

    def beats(self) -> dict[int, dict[str, Any]]:
        """By rank; {} where the actor does not answer: files are read then."""
        try:
            return ray.get(self.actor.read.remote(), timeout=_ASK_S)  # type: ignore[no-any-return]
        except (RayError, GetTimeoutError):
            return {}

    def stop(self) -> None:
        """Asks all ranks to save and end at the next step."""
        with suppress(RayError):
            self.actor.stop.remote()

    def close(self) -> None:
        with suppress(RayError):
            ray.kill(self.actor)


class Line:
    """A worker's end. Never waits."""

    def __init__(self, actor: Any) -> None:
        self._actor, self._last = actor, None
        self._arrived = time.monotonic()
        self.stop_requested = False

    @property
    def is_up(self) -> bool:
        return time.monotonic() - self._arrived < _LOST_S

    def send(self, beat: dict[str, Any], at_once: bool = False) -> None:
        """The next beat goes when the last one has arrived; `at_once`: without looking."""
        try:
            if self._last is not None and not at_once:
                if not ray.wait([self._last], timeout=0)[0]:
                    return
                self.stop_requested = self.stop_requested or bool(ray.get(self._last))
                self._arrived = time.monotonic()
            self._last = self._actor.beat.remote(beat)
        except RayError:
            self._last = None

    def close(self, beat: dict[str, Any]) -> None:
        """The last one, which is waited for: it says what was committed."""
        with suppress(RayError, GetTimeoutError):
            ray.get(self._actor.beat.remote(beat), timeout=_ASK_S)

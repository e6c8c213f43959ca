"""What a pass before a stage's first step says of itself: that it gets on, how far it is; and whether it is to stop."""

import time

from console import duration
from trainer.watch.heartbeat import Heartbeat

_TELL_S = 30.0


class Progress:
    """Of one rank."""

    def __init__(self, beat: Heartbeat, limit_s: float, label: str, tells: bool) -> None:
        """`limit_s`: longer than this without getting on counts as hung; `tells`: whether this rank tells the user."""
        self._beat, self._limit_s, self._label, self._tells = beat, limit_s, label, tells
        self._began: tuple[tuple[str, int], float, int] | None = None
        self._told_at = time.monotonic()

    def gets_on(self, what: str, done: int, of: int, last: bool = True) -> None:
        """After every row or step: "its teacher has read row" 30 of 400; `last`: when they are done the pass is."""
        self._beat.enter("load", self._limit_s)
        now = time.monotonic()
        if self._began is None or self._began[0] != (what, of) or done < self._began[2]:  # another teacher may read as many rows
            self._began = ((what, of), now, done)
        if self._tells and now - self._told_at > _TELL_S:
            _, began, first = self._began
            left = f", {duration((of - done) * (now - began) / (done - first))} left" if last and done > first else ""
            self._beat.tell(f"{self._label}: {what} {done:,} of {of:,}{left}")
            self._told_at = now

    @property
    def stop_requested(self) -> bool:
        return self._beat.stop_requested

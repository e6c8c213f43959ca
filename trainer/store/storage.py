"""How fast storage has been to this process, and how long it may take from there: what reads and writes weights tells these meters as it goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

_ASSUMED = 50e6
"""Bytes a second of a process, until something is measured."""
_FASTEST = 200e6
"""No limit counts on more: what the page cache gives says nothing of the storage behind it."""
_SLACK = 4.0
"""Times what the bytes should take: others read and write at the same time."""
_FORGET = 2**30
"""Bytes after which older measurements weigh half."""
_TOLD_FROM_S = 30.0
"""Waits that are worth a line."""


class Meter:
    def __init__(self) -> None:
        self._bytes, self._seconds = 0.0, 0.0
        self._listener: Callable[[], None] | None = None

    def add(self, count: int, seconds: float) -> None:
        self._bytes, self._seconds = self._bytes + count, self._seconds + seconds
        if self._bytes > _FORGET:
            self._bytes, self._seconds = self._bytes / 2, self._seconds / 2
        if self._listener:
            self._listener()

    @property
    def per_s(self) -> float:
        """Bytes a second: measured where a MiB was, but never more than `_FASTEST`."""
        return min(_FASTEST, self._bytes / max(self._seconds, 1e-9)) if self._bytes >= 2**20 else _ASSUMED

    def limit_s(self, base_s: float, count: float) -> float:
        """How long a phase with so many bytes may last that may take `base_s` without them."""
        return base_s + _SLACK * count / self.per_s

    def in_words(self, what: str, base_s: float, count: float) -> str | None:
        """A line for people where it takes long enough to wonder."""
        takes_s = count / self.per_s
        if takes_s < _TOLD_FROM_S:
            return None
        minutes = self.limit_s(base_s, count) / 60
        return f"{what}: {count / 1e9:,.1f} GB for each rank, {takes_s / 60:.0f} min at {self.per_s / 1e6:,.0f} MB/s; after {minutes:.0f} min it counts as hung"

    @contextmanager
    def followed(self, extend: Callable[[float], None], base_s: float, count: float) -> Iterator[None]:
        """While this is open `extend` gets the limit anew as slower storage is measured."""
        self._listener = lambda: extend(self.limit_s(base_s, count))
        try:
            yield
        finally:
            self._listener = None


READING, WRITING = Meter(), Meter()


def give_groups(limit_s: float) -> None:
    """Every process group of this process waits so long in a collective, DeepSpeed's own ones too: by default these give up after 10 minutes (NCCL) or 30."""
    from torch.distributed import distributed_c10d as distributed

    groups: Any = distributed._world.pg_map
    for group in list(groups):
        if distributed.get_rank(group) >= 0:
            distributed._set_pg_timeout(timedelta(seconds=limit_s), group)

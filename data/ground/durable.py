"""Files that are whole or not there, whatever happens to the power."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from console import UserError


def write_json(path: Path, content: Any, durable: bool = True) -> None:
    """Whole or not at all. `durable`: on disk before it returns; not worth milliseconds for what is written every second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    draft.replace(path)
    if durable:
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Whole or not at all for who reads it meanwhile; a power cut may lose it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def check_new(path: Path) -> None:
    """UserError unless --out can become a new file."""
    if path.exists():
        raise UserError(f"{path}: is there already; give another --out, or move it away")
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is no folder")


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """Put in place when the block has ended; an error leaves nothing."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes a file's content, or the renames inside a folder, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LATE_S = 150.0


def late_s() -> float:
    """How long shared storage may hide what another node has written: NFS keeps "no such file" for up to a minute. STUDYHALL_LATE_S=seconds, where it is
    known to be quicker."""
    return float(os.environ.get("STUDYHALL_LATE_S", _LATE_S))


def await_file(path: Path) -> Path:
    """Until `path` is there, which somebody else is known to have written. Raises FileNotFoundError where it does not come."""
    deadline, pause_s = time.monotonic() + late_s(), 0.02
    while not path.exists():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"{path}: is not to be seen here after {late_s():.0f} s, though it was written; is this storage shared by all nodes?"
            )
        with suppress(OSError):
            os.listdir(path.parent)  # makes some file systems look again
        time.sleep(pause_s)
        pause_s = min(1.0, 1.5 * pause_s)
    return path

"""What is in files, told by SHA-256 and remembered: 140 GB are read once, not at every start.

A remembered hash counts while size, times and inode are what they were. Two changes can hide behind equal ones, and neither does here: times that
were put back (the time of the inode's own change cannot be set), and a change within the clock tick in which the file was hashed (as git does
with its index, what was younger than that is hashed again).
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.ground.durable import write_json

MEMORY = "contents.json"
"""Of a run folder."""
_TICK_NS = 2_000_000_000
"""The coarsest times that file systems keep (FAT; NFS and ext3 keep seconds)."""
_READERS = 8
"""Files hashed at once: the hash leaves Python's lock, and storage gives several readers more than one."""


def sha256_of(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage_of(path: Path, expected: dict[str, Any]) -> str | None:
    """Why a file is not what a manifest says of it ("bytes", "sha256"), or None."""
    if not path.is_file():
        return f"{path}: is missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path}: has {size} bytes, its manifest says {expected['bytes']}"
    return None if sha256_of(path) == expected["sha256"] else f"{path}: its SHA-256 is not the one in its manifest"


def contents(files: Sequence[Path], memory: Path | None) -> list[str]:
    """The SHA-256 of each file; `memory`: the file that remembers them (None, or one that cannot be written: all are read). Raises OSError."""
    known = _remembered(memory)
    names = [str(file.resolve()) for file in files]
    facts = [_facts(file) for file in files]
    now = time.time_ns()
    new = [n for n, name in enumerate(names) if not _still(known.get(name), facts[n])]
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as readers:
        hashes = dict(zip(new, readers.map(sha256_of, [files[n] for n in new]), strict=True))
    fresh = {names[n]: {"is": facts[n], "hashed_ns": now, "sha256": digest} for n, digest in hashes.items()}
    if memory is not None and fresh:
        with suppress(OSError):
            write_json(memory, {**_remembered(memory), **fresh})
    return [str((fresh.get(name) or known[name])["sha256"]) for name in names]


def names_and_contents(files: Sequence[Path], memory: Path | None) -> list[list[str]]:
    """[name without its folder, SHA-256] of each file: what stands for them in a key, wherever they lie."""
    return [[file.name, digest] for file, digest in zip(files, contents(files, memory), strict=True)]


def weight_files(folder: Path) -> list[Path]:
    """What decides a model's numbers."""
    return sorted([*folder.glob("*.safetensors"), folder / "config.json"])


def model_contents(folder: Path, memory: Path | None) -> str:
    """What stands for a model folder's weights."""
    return f"contents:{hashlib.sha256(json.dumps(names_and_contents(weight_files(folder), memory)).encode()).hexdigest()}"


def _facts(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _still(entry: Any, facts: list[int]) -> bool:
    return bool(entry) and entry["is"] == facts and max(facts[1:3]) + _TICK_NS < entry["hashed_ns"]


def _remembered(memory: Path | None) -> dict[str, Any]:
    """{} where there is none, or none that can be read."""
    try:
        found = json.loads(memory.read_text()) if memory else {}
        return {name: entry for name, entry in found.items() if {"is", "hashed_ns", "sha256"} <= entry.keys()}
    except (OSError, ValueError, AttributeError):
        return {}

"""What training starts from, copied to a disk of the node: for storage that is shared and slow, where many starts read the same (trainer.local_copies).

By what is in the files, so that all runs of a node find one copy; by one process of a node, others wait for it. A copy is what its source's hashes say or it is made
again, and where it cannot be made the source is read as ever. Costs the model's size on each node's disk and one reading of the whole by each node, where
ranks would read it once between them.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from console import say
from data.ground.contents import MEMORY, contents, weight_files
from trainer.store.storage import READING

_CHUNK = 16 * 2**20
_AT_ONCE = 4
"""Files copied at a time."""


def hashes_of(folder: Path, memory: Path) -> dict[str, str]:
    """{file: SHA-256} of what a model's weights are read from; on the driver, which remembers them (data/ground/contents.py)."""
    files = [file for file in [*weight_files(folder), folder / "model.safetensors.index.json"] if file.is_file()]
    return {file.name: digest for file, digest in zip(files, contents(files, memory), strict=True)}


def nearby(source: Path, hashes: dict[str, str], place: str | None) -> Path:
    """A copy of these files of `source` below `place`, a folder of this node's; `source` itself where there is no place or no copy can be made."""
    if not place or not hashes:
        return source
    target = Path(place) / hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()[:16]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(target, hashes):
                _make(source, hashes, target)
    except OSError as error:
        say(f"{source}: read from there, for no copy of it could be made ({error})")
        return source
    return target


def _make(source: Path, hashes: dict[str, str], target: Path) -> None:
    """Raises OSError; nothing is left then."""
    files, draft = [source / name for name in hashes], target.with_name(f".{target.name}.{os.getpid()}")
    size, free = sum(file.stat().st_size for file in files), shutil.disk_usage(target.parent).free
    if size > free:
        raise OSError(f"{target.parent}: {size / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} free")
    say(f"{source}: copied to this node, once ({target}, {size / 1e9:,.1f} GB)")
    shutil.rmtree(target, ignore_errors=True)
    for left in target.parent.glob(f".{target.name}.[0-9]*"):  # of a process that was killed
        shutil.rmtree(left)
    try:
        draft.mkdir()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda file: _copy(file, draft / file.name), files))
        draft.replace(target)
        if not _is_whole(target, hashes):
            shutil.rmtree(target)
            raise OSError("its bytes are not those that were hashed")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(file: Path, target: Path) -> None:
    with file.open("rb", buffering=0) as source, target.open("wb", buffering=0) as copy:
        while True:
            started = time.perf_counter()
            if not (part := source.read(_CHUNK)):
                break
            READING.add(len(part), time.perf_counter() - started)
            copy.write(part)
        os.fsync(copy.fileno())


def _is_whole(target: Path, hashes: dict[str, str]) -> bool:
    files = [target / name for name in hashes]
    return all(file.is_file() for file in files) and contents(files, target / MEMORY) == list(hashes.values())

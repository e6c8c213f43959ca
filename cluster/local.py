"""This machine: its GPUs, memory and disk, without torch."""

import os
import subprocess
from dataclasses import replace

from cluster.chips import GIB, Hardware, chip_of_device, make_hardware
from console import UserError


def gpus_of_this_machine() -> list[tuple[str, float]]:
    """(device name, bytes of memory) of each GPU that the driver lists; empty without a driver. CUDA_VISIBLE_DEVICES="" hides them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in listed.splitlines() if "," in line]
    return [(name.strip(), float(memory) * 2**20) for name, _, memory in rows]


def host_memory_bytes() -> float:
    """Of this machine, or of the container that this process is in, where that has less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                total = min(total, float(file.read()))
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
    return total


def local_hardware(host_gib: float | None = None, disk_gib: float | None = None) -> Hardware:
    """The GPUs here, else two CPU workers, the trainer's default. UserError for a GPU that the cost model does not know."""
    host = host_gib * GIB if host_gib else host_memory_bytes()
    disk = disk_gib * GIB if disk_gib else None
    devices = gpus_of_this_machine()
    if not devices:
        return Hardware(None, 2, 2, host, disk)
    name, memory = devices[0]
    chip = chip_of_device(name, memory)
    if chip is None:
        raise UserError(f"the cost model knows nothing of {name}: name GPUs that it knows with --gpus, e.g. --gpus 1xA100-80G")
    chip = replace(chip, memory_bytes=memory)
    return replace(make_hardware(len(devices), chip, gpus_per_node=len(devices), disk_gib=disk_gib), host_bytes=host)

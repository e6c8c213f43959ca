"""This machine: its GPUs, memory and disk, without torch."""

import os
from dataclasses import replace

from cluster import probe
from cluster.cost.chips import GIB, Hardware, chip_of_device, make_hardware
from console import UserError


def local_hardware(host_gib: float | None = None, disk_gib: float | None = None) -> Hardware:
    """The GPUs here, else two CPU workers, the trainer's default. UserError for a GPU that the cost model does not know."""
    host = host_gib * GIB if host_gib else probe.ram_bytes()
    disk = disk_gib * GIB if disk_gib else None
    devices = [] if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else probe.gpus()
    if not devices:
        return Hardware(None, 2, 2, host, disk)
    name, memory = devices[0]["name"], devices[0]["bytes"]
    chip = chip_of_device(name, memory)
    if chip is None:
        raise UserError(f"the cost model knows nothing of {name}: name GPUs that it knows with --gpus, e.g. --gpus 1xA100-80G")
    chip = replace(chip, memory_bytes=memory)
    return replace(make_hardware(len(devices), chip, gpus_per_node=len(devices), disk_gib=disk_gib), host_bytes=host)

"""GPUs for the exam's engines: how many engines find room, and whether a GPU is really free before one starts."""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.ground.engines import engines_at_once, gpus_of_engine

if TYPE_CHECKING:
    from evaluation.engines.options import EngineOptions

log = logging.getLogger(__name__)

_FREE_BYTES = 1.5 * 2**30
_PATIENCE_S = 120.0
"""Workers of an engine that was ended may hold a GPU for some seconds more; a stranger holds it for ever, and vLLM itself says so then."""


@dataclass(frozen=True)
class Gpu:
    id: str
    """Its number or its UUID, as CUDA_VISIBLE_DEVICES may name it."""
    uuid: str
    bytes: float
    used_bytes: float


def gpus_of_this_machine() -> list[Gpu]:
    """As the driver lists them; [] where there is none."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines() if line.count(",") == 3]
    return [Gpu(index, uuid, float(total) * 2**20, float(used) * 2**20) for index, uuid, total, used in rows]


def await_free_gpus(look: Callable[[], list[Gpu]] = gpus_of_this_machine, patience_s: float = _PATIENCE_S) -> bool:
    """Until the GPUs that this process was given hold nothing of another; whether they do not. Called before anything touches them."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    deadline = time.monotonic() + patience_s
    while busy := [gpu for gpu in look() if (not named or {gpu.id, gpu.uuid} & set(named)) and gpu.used_bytes > _FREE_BYTES]:
        if time.monotonic() > deadline:
            log.warning("GPU %s still has %.1f GiB in use after %.0f s", busy[0].id, busy[0].used_bytes / 2**30, patience_s)
            return False
        time.sleep(1)
    return True


def spread(options: "EngineOptions", asked: int | None, paths: Sequence[str]) -> "EngineOptions":
    """As many engines as the connected cluster has GPUs for, and (`asked`, exam.gpus, None) as many GPUs for each as the largest model needs."""
    by_node, memory = _cluster_gpus()
    if not by_node or not options.gpus:
        return options
    gpus = options.gpus
    if asked is None and memory:
        gpus = gpus_of_engine(max(map(weight_bytes, paths), default=0.0), memory, max(by_node))
    return replace(options, gpus=gpus, engines=engines_at_once(gpus, by_node, len(paths)))


def weight_bytes(path: str) -> float:
    """Of a model folder's files; 0 of a hub id."""
    return float(sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))) if Path(path).is_dir() else 0.0


def _cluster_gpus() -> tuple[list[int], float | None]:
    """GPUs of each living node that has any, and the memory of the smallest, asked on one of these nodes; None: it does not say."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if not nodes:
        return [], None
    found: list[Gpu] = []
    with suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
        look = ray.remote(num_cpus=0, max_retries=0)(gpus_of_this_machine)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        told = ray.get([look.options(scheduling_strategy=place).remote() for place in places], timeout=60)
        found = [gpu for gpus in told for gpu in gpus]
    return [int(node["Resources"]["GPU"]) for node in nodes], min((gpu.bytes for gpu in found), default=None)

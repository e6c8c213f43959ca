"""What preflight asks of a connected Ray cluster: versions, GPUs, CPUs, memory, collectives, storage. One line each."""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import probe
from cluster.cost.chips import GIB
from console import error_line

_TASK_S = 120.0
_COLLECTIVE_S = 90.0
_MOST_RANKS = 64
_FREE_GPU_BYTES = 1.5 * GIB
_LEAST_SHM_BYTES = 1.0 * GIB


@dataclass(frozen=True)
class Line:
    """One check's outcome; `good` None: not checked, and why."""

    what: str
    good: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'ok', False: 'WRONG', None: '–'}[self.good]:6}{self.what}: {self.text}"


@dataclass(frozen=True)
class Node:
    id: str
    address: str
    facts: dict[str, Any]
    resources: dict[str, float]
    store_bytes: float


class Nodes:
    """The cluster's living nodes, and tasks on each of them."""

    def __init__(self) -> None:
        import ray
        import ray.cloudpickle

        ray.cloudpickle.register_pickle_by_value(probe)  # nodes may have nothing of ours
        self._alive = [node for node in ray.nodes() if node["Alive"]]
        found = self._on_all(probe.facts)
        self.all = [
            Node(n["NodeID"], n["NodeManagerAddress"], found[n["NodeID"]], n["Resources"], n["Resources"].get("object_store_memory", 0))
            for n in self._alive
        ]

    def ask(self, function: Callable[..., Any], *arguments: Any) -> list[tuple[Node, Any]]:
        """(node, what `function` returned there), or the exception."""
        found = self._on_all(function, *arguments)
        return [(node, found[node.id]) for node in self.all]

    def _on_all(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = ray.remote(num_cpus=0, max_retries=0)(function)
        ids = [node["NodeID"] for node in self._alive]
        calls = [remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments) for node in ids]
        ray.wait(calls, num_returns=len(calls), timeout=_TASK_S)
        return {node: _got(call) for node, call in zip(ids, calls, strict=True)}


def _got(call: Any) -> Any:
    import ray

    try:
        return ray.get(call, timeout=1)
    except Exception as error:  # of whatever kind: it becomes this node's answer
        return error


def answering(nodes: Nodes) -> Line:
    silent = [node for node in nodes.all if isinstance(node.facts, Exception)]
    if silent:
        return Line("nodes", False, f"{silent[0].address} does not run tasks ({_short(silent[0].facts)}); restart Ray there")
    return Line("nodes", True, f"{len(nodes.all)} answer: {', '.join(node.facts['host'] for node in nodes.all[:8])}")


def versions(nodes: Nodes) -> Line:
    first = nodes.all[0]
    for node in nodes.all[1:]:
        for name, version in first.facts["versions"].items():
            if node.facts["versions"][name] != version:
                return Line(
                    "versions", False,
                    f"{name} is {version} on {first.facts['host']} and {node.facts['versions'][name]} on {node.facts['host']} "
                    f"({node.address}): install the same requirements/*.lock on both",
                )  # fmt: skip
    here = probe.facts()["versions"]
    differing = [name for name in ("python", "ray", "torch", "deepspeed", "transformers") if first.facts["versions"][name] != here[name]]
    if differing:
        name = differing[0]
        return Line("versions", False, f"{name} is {here[name]} here and {first.facts['versions'][name]} on the nodes: use the same lock")
    if missing := [name for name in ("torch", "deepspeed", "transformers") if here[name] == "missing"]:
        return Line("versions", False, f"{missing[0]} is not installed: make setup, or the image of cluster/Dockerfile")
    told = ", ".join(f"{name} {here[name]}" for name in ("python", "ray", "torch", "deepspeed", "transformers", "vllm"))
    return Line("versions", True, f"the same everywhere: {told}")


def cpus_and_gpus(nodes: Nodes, workers: int, use_gpu: bool, cpus_needed: float) -> list[Line]:
    """Enough of both, free, and CPUs left over for the streams: without those ranks would wait for rows for ever."""
    import ray

    have, free = ray.cluster_resources(), ray.available_resources()
    lines = []
    if use_gpu:
        seen = sum(len(node.facts["gpus"]) for node in nodes.all)
        offered = int(have.get("GPU", 0))
        if offered < workers:
            driver = f" (the drivers list {seen}: start Ray with --num-gpus)" if seen > offered else ""
            lines.append(
                Line("GPUs", False, f"{workers} asked for, Ray offers {offered}{driver}; set trainer.num_workers lower, or add nodes")
            )
        elif busy := [(node, gpu) for node in nodes.all for gpu in node.facts["gpus"] if gpu["used_bytes"] > _FREE_GPU_BYTES]:
            node, gpu = busy[0]
            text = (
                f"{gpu['name']} on {node.facts['host']} has {gpu['used_bytes'] / GIB:.1f} GiB in use already; end what uses it (nvidia-smi)"
            )
            lines.append(Line("GPUs", False, text))
        else:
            lines.append(Line("GPUs", True, f"{offered} offered, {workers} asked for, all free"))
    else:
        lines.append(Line("GPUs", True, f"none, and none needed: {workers} CPU worker(s)"))
    streams = cpus_needed - workers - 1
    if have.get("CPU", 0) < cpus_needed:
        text = (
            f"{cpus_needed:g} needed ({workers} workers, {streams:g} for their streams, 1 beside), the cluster has {have.get('CPU', 0):g}"
        )
        lines.append(Line("CPUs", False, f"{text}; set trainer.num_workers lower, or add CPUs"))
    elif free.get("CPU", 0) < cpus_needed:
        text = f"{cpus_needed:g} needed, {free.get('CPU', 0):g} of {have['CPU']:g} are free: other jobs hold the rest"
        lines.append(Line("CPUs", False, f"{text} (python -m cluster status)"))
    else:
        lines.append(Line("CPUs", True, f"{have['CPU']:g}, {cpus_needed:g} needed, of which {streams:g} for the data streams"))
    return lines


def shared_memory(nodes: Nodes) -> Line:
    """Ray's object store and NCCL's buffers live in /dev/shm; docker's default of 64 MiB is the usual trap."""
    for node in nodes.all:
        shm = node.facts["shm_bytes"]
        wanted = max(_LEAST_SHM_BYTES, node.store_bytes)
        if shm < wanted:
            return Line(
                "shared memory", False,
                f"/dev/shm on {node.facts['host']} has {shm / GIB:.2f} GiB, object store and NCCL want {wanted / GIB:.2f}: "
                "--shm-size (docker) or an emptyDir with medium: Memory (Kubernetes)",
            )  # fmt: skip
    least = min(node.store_bytes for node in nodes.all)
    return Line("shared memory", True, f"/dev/shm and object store, at least {least / GIB:.2f} GiB a node")


def collectives(workers: int, use_gpu: bool) -> Line:
    """A real all-reduce between processes placed as training workers are: NCCL on GPUs, gloo on CPUs."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    backend, count = ("nccl" if use_gpu else "gloo"), min(workers, _MOST_RANKS)
    bundle = {"CPU": 1.0, **({"GPU": 1.0} if use_gpu else {})}
    group = placement_group([bundle] * count, strategy="SPREAD")
    try:
        if not ray.wait([group.ready()], timeout=_TASK_S)[0]:
            return Line("collectives", False, f"no room for {count} processes came free in {_TASK_S:.0f} s; other jobs hold the cluster")
        actor = ray.remote(num_cpus=1, num_gpus=float(use_gpu))(probe.Rank)
        ranks = [
            actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=n)).remote()
            for n in range(count)
        ]
        address = ray.get(ranks[0].address.remote(), timeout=_TASK_S)
        calls = [rank.reduce.remote(n, count, address, backend, _COLLECTIVE_S) for n, rank in enumerate(ranks)]
        _, late = ray.wait(calls, num_returns=count, timeout=_TASK_S + _COLLECTIVE_S)
        if late:
            return Line("collectives", False, _network(backend, f"{len(late)} of {count} ranks did not answer"))
        sums = {ray.get(call) for call in calls}
    except Exception as error:  # of the backend, of Ray, of the network
        return Line("collectives", False, _network(backend, _short(error)))
    finally:
        remove_placement_group(group)
    right = count * (count + 1) / 2
    if sums != {right}:
        return Line("collectives", False, _network(backend, f"{count} ranks summed to {sorted(sums)}, not {right:g}"))
    return Line("collectives", True, f"{backend} all-reduce over {count} rank(s)")


def _network(backend: str, why: str) -> str:
    return f"{backend}: {why}; are all ports open between nodes, is {backend.upper()}_SOCKET_IFNAME the right network?"


def storage(nodes: Nodes, folder: Path, needed_bytes: float | None) -> Line:
    """The run folder's place: every node writes and renames there, and reads what all others wrote; and there is room."""
    place = folder.resolve() / f".preflight-{secrets.token_hex(4)}"
    try:
        place.mkdir(parents=True)
    except OSError as error:
        return Line("storage", False, f"{error.filename or folder}: {error.strerror}; give another place with runs=/shared/runs")
    try:
        names, free = [], float("inf")
        for node, answer in nodes.ask(probe.write_mark, str(place)):
            if isinstance(answer, Exception) or "error" in answer:
                why = _short(answer) if isinstance(answer, Exception) else answer["error"]
                return Line("storage", False, f"{node.facts['host']} cannot write: {why}; runs must lie on storage that all nodes share")
            names.append(answer["name"])
            free = min(free, answer["free_bytes"])
        for node, missing in nodes.ask(probe.read_marks, str(place), names):
            if isinstance(missing, Exception) or missing:
                return Line("storage", False, f"{node.facts['host']} does not see what other nodes wrote to {folder}: it is not shared")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if needed_bytes is not None and free < needed_bytes:
        text = f"{folder} has {free / GIB:,.1f} GiB free, the run needs {needed_bytes / GIB:,.1f} at its worst moment"
        return Line("storage", False, f"{text}: {(needed_bytes - free) / GIB:,.1f} GiB missing; free some, or choose another with runs=")
    need = "" if needed_bytes is None else f", {needed_bytes / GIB:,.1f} needed"
    return Line("storage", True, f"{folder}: shared, writable, renames work, {free / GIB:,.1f} GiB free{need}")


_RATE_BYTES = 64 * 2**20
_WRITERS = 8


def storage_speed(nodes: Nodes, folder: Path) -> tuple[dict[str, float] | None, Line]:
    """What one process and all nodes together (eight threads each) write and read a second, the slower of the two; for the planner (cluster/cost/phases.py)."""
    place = folder.resolve() / f".preflight-{secrets.token_hex(4)}"
    place.mkdir(parents=True)
    try:
        found = {}
        for name, writers in (("process_bytes_per_s", 1), ("storage_bytes_per_s", _WRITERS)):
            answers = [answer for _, answer in nodes.ask(probe.storage_rate, str(place), _RATE_BYTES, writers)]
            if failed := [answer for answer in answers if isinstance(answer, Exception)]:
                return None, Line("storage speed", None, f"not measured: {_short(failed[0])}")
            rates = [min(answer.values()) for answer in answers]
            found[name] = min(rates) if writers == 1 else sum(rates)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    told = ", ".join(
        f"{found[key] / 1e9:.2g} GB/s {who}" for key, who in (("process_bytes_per_s", "a process"), ("storage_bytes_per_s", "together"))
    )
    return found, Line(
        "storage speed", True, f"{told}, measured with {_RATE_BYTES >> 20} MiB files on {len(nodes.all)} node(s); plan uses it"
    )


def _short(error: Any) -> str:
    return error_line(error)[:200]

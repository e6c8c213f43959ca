"""Ray Train, in one file: a group of workers that trains a list of jobs, fed by Ray Data, restarted on failure."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from data.ground.imports import importing
from data.rows.flat_rows import STREAM_CPUS, Row, reading_of
from data.rows.stream import RankShares, StreamSpec, iterate, step_spans
from trainer.cpus import WORKER_CPUS
from trainer.jobs.prepare import Job
from trainer.watch.beat_board import Board, Line
from trainer.watch.stacks import write_stacks

ROWS_TIMEOUT_S = 300.0
_NOTICE_S = 60.0  # for Ray to notice that a node is gone; its own limit is below that
_COLLECTIVE_TIMEOUT_S = 6 * 3600  # ranks wait while rank 0 writes hf/: 140 GB at 70B


def train_on_ray(
    settings: Any, jobs: list[Job], resume: dict[str, int], tokens_folder: str, num_workers: int, use_gpu: bool, board: Board | None = None
) -> None:
    """Trains the jobs in one worker group (settings: trainer.worker.WorkerSettings), once: trainer/watch/supervise.py tries again.
    `board`: where they tell their heartbeats.

    Raises ray.train.TrainingFailedError.
    """
    # Ray's own run folders hold nothing that the stage store lacks; they would only grow.
    shutil.rmtree(Path(settings.run_folder) / "ray", ignore_errors=True)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a dead worker is noticed that soon; the default is 2 s
    _fit(settings, jobs, resume, tokens_folder, num_workers, use_gpu, board)


def _fit(
    settings: Any, jobs: list[Job], resume: dict[str, int], tokens_folder: str, num_workers: int, use_gpu: bool, board: Board | None
) -> None:
    specs = {
        _stream(job.key, one_item): StreamSpec(
            job.plan_path,
            tokens_folder,
            job.num_steps,
            job.capacity,
            job.stage.loss,
            reading=reading_of(job.stage, settings.seed, job.lessons, job.passages),
            longest=job.longest,
            first_step=resume.get(job.key, 0),
            one_item=one_item,
        )
        for job in jobs
        for one_item in (False, True)  # workers find out which (trainer/step/isolation.py); the other is never read, and so never made
    }
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={
            "settings": settings,
            "jobs": jobs,
            "resume": resume,
            "environment": our_environment(),
            "board": board and board.actor,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": WORKER_CPUS, **({"GPU": 1} if use_gpu else {})}
        ),
        datasets={key: step_spans(spec) for key, spec in specs.items()},
        dataset_config=RankShares(specs),
        # The same name would make Ray resume, silently; what is done is known from the stage store alone.
        run_config=ray.train.RunConfig(
            name=f"{jobs[0].key}-{time.time_ns()}",
            storage_path=str((Path(settings.run_folder) / "ray").resolve()),
            # No retries of Ray's: it would count failures of good steps against bad ones, and could not start at another checkpoint.
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()


def _stream(key: str, one_item: bool) -> str:
    """Name of a job's dataset."""
    return f"{key}-one-item" if one_item else key


def our_environment() -> dict[str, str]:
    """Our own environment variables: workers inherit their cluster's environment, not the driver's."""
    return {name: value for name, value in os.environ.items() if name.startswith("STUDYHALL_")}


def _worker_main(config: dict[str, Any]) -> None:
    settings = config["settings"]
    os.environ.update(config["environment"])
    if not settings.use_gpu:  # before torch and DeepSpeed look: Ray does not hide GPUs from workers that asked for none
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    with importing():
        import torch
        from ray.train.v2._internal.execution.context import get_train_context

        from trainer.worker import train_jobs

    if not settings.use_gpu or settings.trainer.offload_optimizer:  # the optimiser of offloaded states runs on the CPU
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size()))

    def rows_of(job: Job, rank: int, world_size: int, first_step: int, one_item: bool) -> Iterator[Row]:
        return iterate(
            ray.train.get_dataset_shard(_stream(job.key, one_item)), ROWS_TIMEOUT_S
        )  # begins at resume[job.key], which is first_step

    # ray.train.get_preemption_info() asks the same, with a barrier over all ranks; heartbeats of each look by themselves, and the loop agrees.
    notice = get_train_context().preemption_context

    def leaving() -> bool:
        return notice.preemption_info is not None

    train_jobs(
        settings,
        config["jobs"],
        rows_of,
        config["resume"],
        ray.get_runtime_context().get_node_id(),
        leaving,
        config["board"] and Line(config["board"]),
    )


def write_stacks_and_kill(beats: list[dict[str, Any]], culprits: list[dict[str, Any]]) -> None:
    """On every node: stacks of its ranks into logs/stacks-*.txt, then SIGKILL for the culprits: Ray takes the rest of the group down."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def act(to_write: list[dict[str, Any]], to_kill: list[dict[str, Any]]) -> None:
        write_stacks(to_write)
        for beat in to_kill:
            with suppress(ProcessLookupError):
                os.kill(beat["pid"], signal.SIGKILL)

    calls = []
    for node in {beat["node"] for beat in beats}:
        there = [[b for b in group if b["node"] == node] for group in (beats, culprits)]
        calls.append(act.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*there))
    ray.wait(calls, num_returns=len(calls), timeout=20)  # a node that is gone answers never; Ray notices that by itself


def room(use_gpu: bool) -> int:
    """Workers that the connected cluster has room for, streams included.

    Ray counts a node that has just died for up to a minute more: workers would take the CPUs that its streams were meant to have, and all
    would wait for rows. So nodes are knocked at, and the cluster is given time to notice one that is gone.
    """
    deadline = time.monotonic() + _NOTICE_S
    while (gone := [node for node in ray.nodes() if node["Alive"] and not _answers(node)]) and time.monotonic() < deadline:
        time.sleep(1)
    there = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in {other["NodeID"] for other in gone}]
    cpus, gpus = (sum(resources.get(kind, 0) for resources in there) for kind in ("CPU", "GPU"))
    by_cpus = int((cpus - 1) / (WORKER_CPUS + STREAM_CPUS))
    return min(by_cpus, int(gpus)) if use_gpu else by_cpus


def _answers(node: dict[str, Any]) -> bool:
    """Whether the node's own daemon listens."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=3).close()
    except OSError:
        return False
    return True

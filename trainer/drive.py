"""The driver while training: progress, heartbeats, events, stops; with Ray, or without it in this process alone."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from console import RunError, duration, err, progress, say
from data.ground.contents import MEMORY
from data.ground.durable import await_file
from data.ground.imports import importing
from data.rows.flat_rows import Row, rank_rows, reading_of
from data.wording.templates import wording_of
from trainer.config import TrainerConfig
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.run import Prepared, pending, plan_of
from trainer.store.mirror import Mirror
from trainer.store.stages import StageStore
from trainer.watch.heartbeat import heartbeat_folder, stop_file
from trainer.watch.supervise import raise_if_stopped, resume_points, stop_on_signals, supervise
from trainer.watch.watchdog import Events, Watchdog

_TELL_EVERY_S = 60.0


def train(folder: Path, prepared: Prepared, trainer: TrainerConfig, seed: int, workers: tuple[int, int], use_gpu: bool) -> None:
    """Trains every job that is not committed, with a progress bar for the whole of it. Ray must be connected.

    `workers`: least and most; every (re)start takes as many as the cluster has room for.
    """
    store = StageStore(folder)
    settings = with_models(worker_settings(folder, prepared, trainer, seed, use_gpu), folder, starting_models(folder, prepared))
    group = Group(folder, settings, prepared.tokens_folder, workers)
    events = Events(folder)
    (folder / "progress.json").unlink(missing_ok=True)
    mirror = Mirror(trainer.checkpoint.mirror, folder) if trainer.checkpoint.mirror else nullcontext()
    with progress() as bar, mirror, stop_on_signals(folder) as request:
        show = _Shown(folder, prepared, bar, resume_points(store, prepared.jobs))

        def poll() -> None:
            show.progress()
            for event in events.new():
                say(event["message"] + prepared.items_of(event))
            if acted := group.watch():
                say(acted)

        def left() -> list[Job]:
            group.settle()
            return pending(folder, prepared)

        try:
            supervise(store, left, group.attempt, poll, request, trainer.max_failures)
            poll()
        finally:
            group.close()
    assert all(store.manifest(job.key) for job in prepared.jobs)


def starting_models(folder: Path, prepared: Prepared) -> list[str]:
    """Folders of the models that stages still start from."""
    starts = [job for job in pending(folder, prepared) if job.parent is None]
    given = prepared.parent is not None and prepared.parent.stage is not None
    return [model for model in dict.fromkeys(job.model_folder or ("" if given else prepared.model_folder) for job in starts) if model]


def with_models(settings: WorkerSettings, run_folder: Path, models: list[str]) -> WorkerSettings:
    """The settings with what ranks must know of these models: where mixtures whose files hold experts one by one lie as the network has them, which are written now, and
    the files' hashes, where they are copied."""
    from trainer.network.families import lay_out
    from trainer.store.local_copies import hashes_of

    run_folder = run_folder.resolve()
    written = {model: place for model in models if (place := lay_out(Path(model), run_folder))}
    laid_out = settings.laid_out | {model: str(place) for model, place in written.items()}
    if not settings.trainer.local_copies:
        return replace(settings, laid_out=laid_out)
    read = [laid_out.get(model, model) for model in models]
    hashes = {place: hashes_of(Path(place), run_folder / MEMORY) for place in read}
    return replace(settings, laid_out=laid_out, hashes=settings.hashes | hashes)


class Group:
    """Ray Train worker groups of one run folder, one at a time, with the watchdog over them. Ray must be connected."""

    def __init__(self, folder: Path, settings: WorkerSettings, tokens_folder: Path, workers: tuple[int, int]) -> None:
        """`workers`: least and most; every attempt takes as many as the cluster has room for."""
        from trainer.ray_group import write_stacks_and_kill

        self._folder, self._settings, self._workers = folder, settings, workers
        self._tokens_folder = str(tokens_folder.resolve())
        self._kill = write_stacks_and_kill
        self._board: Any = None
        self._watchdog = Watchdog(folder, self._kill)

    def attempt(self, todo: list[Job], points: dict[str, int]) -> None:
        """One try at these jobs from these steps on: trainer/watch/supervise.py calls it again."""
        from trainer.ray_group import room, train_on_ray
        from trainer.watch.beat_board import Board

        shutil.rmtree(heartbeat_folder(self._folder), ignore_errors=True)
        self.close()
        self._board = Board()
        self._watchdog = Watchdog(self._folder, self._kill, self._board.beats)
        use_gpu = self._settings.use_gpu
        wait_s, stopped = self._settings.trainer.wait_for_nodes_s, stop_file(self._folder).exists
        if (count := _wait_for_room(lambda: room(use_gpu), self._workers, wait_s, stopped)) is None:
            return
        train_on_ray(self._settings, todo, points, self._tokens_folder, count, use_gpu, self._board)

    def watch(self) -> str | None:
        """To be called twice a second or so; a line when the watchdog acted."""
        if self._board and stop_file(self._folder).exists():
            self._board.stop()
        return self._watchdog.poll()

    def settle(self) -> None:
        """Until this node sees what ranks have committed: storage may show it late, and what is not seen would be trained again."""
        self._watchdog.look()
        await_told(self._folder, self._watchdog.committed)

    def close(self) -> None:
        if self._board:
            self._board.close()
            self._board = None


def _wait_for_room(
    room: Callable[[], int], workers: tuple[int, int], wait_s: float, stopped: Callable[[], bool] = lambda: False
) -> int | None:
    """As many workers as there is room for, at most workers[1]; waits for workers[0], and says so. RunError when that does not come; None where it is `stopped`."""
    least, most = workers
    deadline = time.monotonic() + wait_s
    told = False
    while (found := room()) < least:
        if stopped():
            return None
        if time.monotonic() > deadline:
            raise RunError(f"the cluster has room for {found} workers and {least} are asked for: add nodes, or lower trainer.num_workers")
        if not told:
            say(f"waiting for nodes: room for {found} workers, {least} asked for (at most {wait_s:.0f} s; trainer.wait_for_nodes_s)")
            told = True
        time.sleep(1)
    count = min(found, most)
    if least < most:
        say(f"{count} workers of {least} to {most}")
    return count


def await_told(folder: Path, committed: set[str]) -> None:
    """`committed`: manifests of stages and checkpoints, by their paths in the run folder. Of a stage's checkpoints the newest is waited for, unless the
    stage itself is there: then all go."""
    stages = {Path(name).parts[1] for name in committed if "/checkpoints/" not in name}
    newest: dict[str, str] = {}
    for name in sorted(committed):
        if "/checkpoints/" in name and Path(name).parts[1] not in stages:
            newest[Path(name).parts[1]] = name
    for path in [*(folder / "stages" / key / "manifest.json" for key in stages), *map(folder.joinpath, newest.values())]:
        damaged = (path.with_name("manifest.corrupt.json"), path.parent.with_name(f"corrupt-{path.parent.name}"))
        if not any(aside.exists() for aside in damaged):  # taken away since, by who checked it
            with suppress(FileNotFoundError):
                await_file(path)


class _Shown:
    """The progress bar over all jobs; plain lines where there is no terminal."""

    def __init__(self, folder: Path, prepared: Prepared, bar: Any, points: dict[str, int]) -> None:
        self._path, self._bar = folder / "progress.json", bar
        todo = pending(folder, prepared)
        self._before = {job.key: sum(j.num_steps for j in todo[:n]) for n, job in enumerate(todo)}
        self._labels = {job.key: job.label for job in todo}
        self._told: dict[str, float] = {}
        self._total = sum(job.num_steps for job in todo)
        self._first: tuple[float, int] | None = None  # when progress was first seen, and how many steps had been done
        self._task = bar.add_task("training: starting workers", total=self._total)
        if todo and points[todo[0].key]:
            say(f"going on from {todo[0].label}, step {points[todo[0].key] + 1} of {todo[0].num_steps}")

    def progress(self) -> None:
        latest = _read_progress(self._path)
        if not latest or latest["key"] not in self._before:
            return
        key, note = latest["key"], f"loss {latest['loss']:.3f}, {latest['tokens_per_s']:,.0f} tokens/s"
        done = self._before[key] + latest["step"] + 1
        left = self._left(done)
        if not err.is_terminal and (key not in self._told or time.monotonic() - self._told[key] > _TELL_EVERY_S):
            # A bar shows nothing in a job's log until it ends.
            self._told[key] = time.monotonic()
            numbers = f"rate {latest['rate']:.2g}, gradient {latest['grad_norm']:.2g}"
            say(f"training {self._labels[key]}, step {latest['step'] + 1:,} of {latest['steps']:,}{left}, {numbers}, {note}")
        self._bar.update(self._task, completed=done, description=f"training {self._labels[key]}", note=note)

    def _left(self, done: int) -> str:
        """ ", 12 min left" of all stages, at the pace of this start; nothing before there is one."""
        now = time.monotonic()
        began, first = self._first = self._first or (now, done)
        return f", {duration((self._total - done) * (now - began) / (done - first))} left" if done > first else ""


def rows_without_ray(prepared: Prepared, seed: int) -> Callable[[Job, int, int, int, bool], Iterator[Row]]:
    """(job, rank, world size, first step, one item per row?) → rows, made in the process that trains on them."""
    return lambda job, rank, world_size, first_step, one_item: rank_rows(
        plan_of(prepared, job),
        prepared.store.worded(wording_of(job.stage)),
        rank,
        world_size,
        job.capacity,
        job.stage.loss,
        first_step=first_step,
        reading=reading_of(job.stage, seed, job.lessons, job.passages),
        longest=job.longest,
        one_item=one_item,
    )


def train_without_ray(folder: Path, prepared: Prepared, trainer: TrainerConfig, seed: int) -> None:
    """The same jobs in this process alone, on one GPU or CPU: what a machine with torch and DeepSpeed can do.

    Nothing supervises it: after a crash the same command goes on from the last checkpoint.
    """
    import torch

    begin_alone()
    with importing():
        from trainer.worker import train_jobs

    events = Events(folder)

    def tell() -> None:
        for event in events.new():
            say(event["message"] + prepared.items_of(event))

    try:
        mirror = Mirror(trainer.checkpoint.mirror, folder) if trainer.checkpoint.mirror else nullcontext()
        todo = pending(folder, prepared)
        points = resume_points(StageStore(folder), todo)
        (folder / "progress.json").unlink(missing_ok=True)
        with mirror, progress() as bar, stop_on_signals(folder) as request, _followed(tell, _Shown(folder, prepared, bar, points).progress):
            settings = worker_settings(folder, prepared, trainer, seed, torch.cuda.is_available())
            settings = with_models(settings, folder, starting_models(folder, prepared))
            train_jobs(settings, todo, rows_without_ray(prepared, seed), points)
            raise_if_stopped(request)
    finally:
        tell()
        torch.distributed.destroy_process_group()


@contextmanager
def _followed(*looks: Callable[[], None]) -> Iterator[None]:
    """What is to be shown, looked at once a second from a thread, where it is this process that trains; and once more at the end."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(1.0):
            for look in looks:
                look()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for look in looks:
            look()


def begin_alone() -> None:
    """Makes this process a group of one rank, if it is none yet; before DeepSpeed is imported, which looks for GPUs then."""
    import torch

    if torch.distributed.is_initialized():
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=0, world_size=1)


def worker_settings(folder: Path, prepared: Prepared, trainer: TrainerConfig, seed: int, use_gpu: bool) -> WorkerSettings:
    parent = str(prepared.parent.stage) if prepared.parent and prepared.parent.stage else None
    return WorkerSettings(str(folder.resolve()), prepared.model_folder, trainer, prepared.precision, seed, use_gpu, parent)


def _read_progress(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None

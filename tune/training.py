"""Training of one trial up to a step: in its own process, or in a Ray Train group where it needs several.

Starting a group costs 10 to 25 s, which a trial of minutes would pay at every rung; a process of Ray Tune is used again for the next
trial and has its imports already.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from console import StoppedByRequest, say
from data.ground.imports import importing
from trainer.drive import Group, begin_alone, rows_without_ray, with_models
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.run import Prepared
from trainer.store.checkpoint import checkpoints, first_bad_file, set_aside
from trainer.store.stages import StageStore
from trainer.watch.heartbeat import stop_file
from trainer.watch.supervise import StopRequest, resume_points, supervise
from trainer.watch.watchdog import Events

_SHARED = ("stages", "tokens", "plans", "model", "hub")


def workplace(run_folder: Path, name: str) -> Path:
    """A folder of the trial's own for heartbeats, progress and logs, in which the run's stages, tokens and plans are linked.

    So every trial finds what others have trained, and two that train side by side do not write to one heartbeat.
    """
    place = run_folder / "search" / "work" / name
    (place / "logs").mkdir(parents=True, exist_ok=True)
    for shared in _SHARED:
        link, target = place / shared, (run_folder / shared).resolve()
        target.mkdir(exist_ok=True)
        if not link.is_symlink() or link.resolve() != target:  # the run folder may have been moved
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
    return place


@contextmanager
def stage_lock(run_folder: Path, key: str) -> Iterator[None]:
    """One trial at a time trains a stage; another that needs it waits. The lock ends with its process, however that ends."""
    folder = run_folder / "search" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / key).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Training:
    """The jobs of one trial, base included, trained as far as is asked."""

    def __init__(
        self, run_folder: Path, place: Path, prepared: Prepared, settings: WorkerSettings, workers: tuple[int, int] | None
    ) -> None:
        """`workers`: least and most of a Ray Train group; None: in this process alone."""
        self._run_folder, self._place, self._prepared, self.settings, self._workers = run_folder, place, prepared, settings, workers
        self._store = StageStore(run_folder)
        self._paused = place.resolve() / "hf"
        self.seconds = 0.0
        """In which something was trained, loading included."""
        self.steps, self.tokens = 0, 0

    def is_at(self, job: Job, step: int) -> bool:
        return self._store.manifest(job.key) is not None or resume_points(self._store, [job])[job.key] >= step

    def train_to(self, jobs: list[Job], step: int) -> None:
        """All jobs to their end, but the last one to `step`. Raises RunError, and StoppedByRequest where the search's stop file is there."""
        for job in jobs:
            limit = step if job is jobs[-1] else job.num_steps
            with stage_lock(self._run_folder, job.key):
                if not self.is_at(job, limit):
                    if self._stop_asked():
                        raise StoppedByRequest("stopped as asked")
                    self._train(job, limit)
                    self._forget(job)

    def _forget(self, job: Job) -> None:
        """What a teacher said and what weights matter are in the stage's weights by now; other trials have asked for themselves."""
        if self._store.manifest(job.key) is not None:
            for beside in (job.lessons, job.important):
                if beside and Path(beside.folder).is_relative_to(self._place.resolve()):
                    shutil.rmtree(beside.folder, ignore_errors=True)

    def _train(self, job: Job, limit: int) -> None:
        before, started = self._totals(job), time.monotonic()
        pause = {job.key: limit} if limit < job.num_steps else {}
        if job.parent is None and self.settings.parent_stage is None:  # a mixture is written by the trial that comes first
            self.settings = with_models(self.settings, self._run_folder, [job.model_folder or self.settings.model_folder])
        settings = replace(self.settings, pause_after=pause, paused_to=str(self._paused))
        request, events = StopRequest(), Events(self._place)
        group = Group(self._place, settings, self._prepared.tokens_folder, self._workers) if self._workers else None

        def alone(todo: list[Job], resume: dict[str, int]) -> None:
            begin_alone()
            with importing():
                from trainer.worker import train_jobs

            train_jobs(settings, todo, rows_without_ray(self._prepared, settings.seed), resume)

        def poll() -> None:
            if self._stop_asked():
                stop_file(self._place).touch()  # what the workers look at
                request.signum = -1
            for event in events.new():
                say(event["message"] + self._prepared.items_of(event))
            if group and (acted := group.watch()):
                say(acted)

        def left() -> list[Job]:
            if group:
                group.settle()
            return [] if self.is_at(job, limit) else [job]

        try:
            supervise(
                self._store,
                left,
                group.attempt if group else alone,
                poll,
                request,
                settings.trainer.max_failures,
            )
        finally:
            if group:
                group.close()
            after = self._totals(job)
            self.seconds += time.monotonic() - started
            self.steps += after[0] - before[0]
            self.tokens += after[1] - before[1]

    def _stop_asked(self) -> bool:
        return stop_file(self._run_folder / "search").exists()

    def _totals(self, job: Job) -> tuple[int, int]:
        """(steps, tokens) of this stage that are committed."""
        manifest = self._store.manifest(job.key)
        saved = checkpoints(self._store.folder(job.key))
        totals = manifest["totals"] if manifest else saved[0].manifest["totals"] if saved else {"steps": 0, "tokens": 0}
        return totals["steps"], totals["tokens"]

    def tokens_by(self, jobs: list[Job]) -> int:
        """Tokens that these jobs have trained so far, whoever did."""
        return sum(self._totals(job)[1] for job in jobs)

    @contextmanager
    def looked_at(self, job: Job, step: int) -> Iterator[tuple[str, str] | None]:
        """(model folder, SHA-256 of its weights) after exactly so many steps, for as long as the exam takes; as the group left it, else made from its checkpoint.
        None where that is gone too."""
        from trainer.export.export import export_checkpoint
        from trainer.export.paused import forget_paused, paused_weights

        weights = paused_weights(self._paused, job.key, step)
        saved = next((c for c in checkpoints(self._store.folder(job.key)) if c.step == step), None)
        if weights is None and saved:
            if first_bad_file(saved.folder, saved.manifest["files"]):
                set_aside(saved.folder)
            else:
                forget_paused(self._paused)
                weights = export_checkpoint(saved.folder, self.settings, self._paused)
        try:
            yield (str(self._paused), weights) if weights else None
        finally:
            forget_paused(self._paused)

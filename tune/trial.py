"""One trial, in a process of Ray Tune: trains to each rung of its own schedule, has it examined, reports, goes on or is stopped there."""

import json
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from console import RunError, StoppedByRequest
from data.ground.contents import MEMORY, model_contents
from data.rows.framing import template_of
from data.wording.templates import exam_template
from evaluation.report.sound import made_sound
from experiment import Experiment
from trainer.drive import worker_settings
from trainer.jobs.prepare import Job
from trainer.run import Prepared, prepare
from trainer.store.stages import StageStore, write_json
from trainer.watch.supervise import cause
from tune.config import SearchConfig
from tune.deciding.ledger import Ledger, Row, Rung
from tune.deciding.objective import breaks_guard, objective
from tune.deciding.rungs import Point, points
from tune.deciding.space import Values, for_trial, trial_id
from tune.training import Training, stage_lock, workplace

BASE = "base"
_POLL_S = 0.5


@dataclass(frozen=True)
class Task:
    """What all trials of a search have in common."""

    folder: str
    """The run folder."""
    values: dict[str, Any]
    """The experiment's, as read from its file."""
    arm: str
    search: SearchConfig
    use_gpu: bool
    gpus: int
    """Of one trial."""
    exam_gpus: int
    workers: tuple[int, int] | None
    """Of its Ray Train group; None: the trial's own process trains."""
    guard_base: float | None = None
    """The guarded set before the arm."""
    until: float = 1.0
    """Share of its schedule at which a trial waits for the others."""
    environment: dict[str, str] = field(default_factory=dict)
    """Our own variables: a process of Ray has its cluster's environment, not the driver's."""


def run_trial(config: dict[str, Any], task: Task, desk: Any) -> None:
    """What Ray Tune calls; config["values"]: what this trial differs in. Whatever happens to it stands in its row."""
    with stage_lock(Path(task.folder), f"trial-{trial_id(config['values'])}"):  # a sampler may draw one point twice at the same time
        _run_trial(config["values"], task, desk)


def _run_trial(values: Values, task: Task, desk: Any) -> None:
    import ray.tune

    ledger = Ledger(Path(task.folder))
    known = ledger.read_values(values)
    if known and known.finished:  # drawn a second time
        if known.last is None:
            raise RuntimeError(known.reason)
        ray.tune.report({"progress": 100.0, "objective": objective(task.search, known.last.score["mean"], known.state == "refused")})
        return
    row = ledger.begin(values)
    try:
        _Trial(task, row, ledger, desk).run(ray.tune.report)
    except StoppedByRequest:
        row.state = "paused"
        ledger.write(row)
        while True:  # returning would make Ray Tune begin the next trial; the search ends this process
            time.sleep(_POLL_S)
    except Exception as error:
        row.state, row.reason = "failed", cause(error)
        ledger.write(row)
        raise


def run_base(task: Task, desk: Any) -> dict[str, Any]:
    """Trains what all trials share and has it examined: base.json. Raises StoppedByRequest with what was done saved."""
    place = workplace(Path(task.folder), BASE)
    experiment, prepared = _prepared(task, {}, place)
    jobs = _jobs(prepared, BASE)
    training = _training(task, place, experiment, prepared)
    if jobs:
        training.train_to(jobs, jobs[-1].num_steps)
        hf, weights = _weights_of(Path(task.folder), jobs[-1])
    else:
        hf, weights = prepared.model_folder, model_contents(Path(prepared.model_folder), Path(task.folder) / MEMORY)
    template = exam_template([job.stage for job in jobs], template_of(Path(prepared.model_folder)))
    found = _examined(desk, BASE, hf, weights, template)
    inside = Path(hf).is_relative_to(task.folder)  # without its place, so that the folder can be moved
    told = {**found, "hf": str(Path(hf).relative_to(task.folder)) if inside else hf, "weights": weights, "template": template}
    write_json(Path(task.folder) / "search" / "base.json", told)
    return told


class _Trial:
    def __init__(self, task: Task, row: Row, ledger: Ledger, desk: Any) -> None:
        self._task, self._row, self._ledger, self._desk = task, row, ledger, desk
        self._folder = Path(task.folder)
        self._place = workplace(self._folder, row.id)

    def run(self, report: Any) -> None:
        """Calls report({"progress": percent of its schedule, "objective", …}) at every rung and at the end."""
        experiment, self._prepared = _prepared(self._task, self._row.values, self._place)
        jobs = _jobs(self._prepared, self._task.arm)
        own = jobs[len(_jobs(self._prepared, BASE)) :]
        stopping = self._task.search.stopping
        self._row.stages = [job.key for job in own]
        self._row.template = exam_template([job.stage for job in jobs], template_of(Path(self._prepared.model_folder)))
        self._ledger.write(self._row)
        self._training = _training(self._task, self._place, experiment, self._prepared)
        for point in points([job.num_steps for job in own], stopping.rungs, stopping.over):
            known = next((rung for rung in self._row.rungs if math.isclose(rung.share, point.share)), None)
            if known and point.share < 1:  # the scheduler has been told (make_scheduler); told again, it would judge again
                continue
            if rung := known or self._look(jobs, own, point):
                self._tell(rung, report)
            if point.share >= self._task.until:
                break

    def _look(self, jobs: list[Job], own: list[Job], point: Point) -> Rung | None:
        """Trains to the point and has it examined; None where another trial has trained past it and no checkpoint is left."""
        job = own[point.stage]
        way = jobs[: jobs.index(job) + 1]
        before = self._training.seconds, self._training.steps, self._training.tokens
        try:
            self._training.train_to(way, point.step)
        finally:  # a trial that raises has cost what it has cost
            self._row.train_seconds += self._training.seconds - before[0]
            self._row.steps += self._training.steps - before[1]
            self._row.tokens += self._training.tokens - before[2]
            self._count_gpu_hours()
        if not self._row.signals:
            self._row.signals = early_signals(StageStore(self._folder).folder(job.key) / "metrics.jsonl", point.step)
        if point.step == job.num_steps:
            return self._examine(point, own, *_weights_of(self._folder, job))
        with self._training.looked_at(job, point.step) as left:
            return self._examine(point, own, *left) if left else None

    def _examine(self, point: Point, own: list[Job], hf: str, weights: str) -> Rung:
        name = f"{self._row.id}-at-{100 * point.share:g}" if point.share < 1 else self._row.id
        found = _examined(self._desk, name, hf, weights, self._row.template)
        self._row.exam_seconds += found["seconds"]
        self._count_gpu_hours()
        self._row.hf = str(Path(hf).relative_to(self._folder)) if point.share == 1 else ""
        return Rung(point.share, found["score"], found["guard"], self._training.tokens_by(own[: point.stage + 1]))

    def _count_gpu_hours(self) -> None:
        row = self._row
        row.gpu_hours = (row.train_seconds * self._task.gpus + row.exam_seconds * self._task.exam_gpus) / 3600

    def _tell(self, rung: Rung, report: Any) -> None:
        """Into the row first, then to Ray Tune, which may end this trial inside report()."""
        refused = breaks_guard(self._task.search, rung.guard, self._task.guard_base)
        if not any(math.isclose(known.share, rung.share) for known in self._row.rungs):
            self._row.rungs.append(rung)
        if self._task.until <= rung.share < 1:  # a short schedule may have no rung at `until` itself
            self._row.state = "paused"
        if rung.share == 1:
            self._row.state, self._row.reason = ("refused", refused) if refused else ("done", "")
        self._ledger.write(self._row)
        value = objective(self._task.search, rung.score["mean"], refused is not None)
        report({"progress": 100 * rung.share, "objective": value, "trial": self._row.id, **self._row.signals})


def _examined(desk: Any, *paper: str) -> dict[str, Any]:
    """What the desk says; its own errors as they were raised there."""
    import ray

    try:
        return ray.get(desk.examine.remote(*paper))  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _prepared(task: Task, values: Values, place: Path) -> tuple[Experiment, Prepared]:
    experiment = for_trial(task.values, task.arm, values)
    arms = {BASE: experiment.stages(BASE), task.arm: experiment.stages(task.arm)}
    os.environ.update(task.environment)
    if not task.use_gpu:  # before torch and DeepSpeed look
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    gpus = (task.workers[1] if task.workers else 1) if task.use_gpu else 0
    prepared = prepare(place, experiment.data, experiment.model, experiment.trainer, arms, experiment.seed, gpus, experiment.base_run)
    return experiment, prepared


def _jobs(prepared: Prepared, arm: str) -> list[Job]:
    by_key = {job.key: job for job in prepared.jobs}
    return [by_key[key] for key in prepared.keys[arm]]


def _training(task: Task, place: Path, experiment: Experiment, prepared: Prepared) -> Training:
    trainer = experiment.trainer.model_copy(update={"log_every_steps": 1})  # what a rung is judged by needs its first steps
    settings = worker_settings(place, prepared, trainer, experiment.seed, task.use_gpu)
    settings = replace(settings, explodes_at=task.search.stopping.explodes_at)
    return Training(Path(task.folder), place, prepared, settings, task.workers)


def _weights_of(folder: Path, job: Job) -> tuple[str, str]:
    """(folder for the exam, SHA-256) of a committed stage; hf/ is held against the manifest first. RunError where it is damaged for good."""
    with stage_lock(folder, job.key):
        if why := made_sound(StageStore(folder).folder(job.key)):
            raise RunError(why)
    manifest = StageStore(folder).manifest(job.key)
    assert manifest is not None
    return str(folder / "stages" / job.key / "hf"), manifest["weights_sha256"]


def early_signals(metrics: Path, steps: int) -> dict[str, float]:
    """Means over the first `steps` of a stage's metrics.jsonl; {} where there are none (the stage was trained elsewhere)."""
    if not metrics.is_file():
        return {}
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    early = [line for line in lines if line["step"] < steps and math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])]
    if not early:
        return {}
    return {
        "grad_norm": sum(line["grad_norm"] for line in early) / len(early),
        "early_loss": sum(line["loss"] for line in early) / len(early),
    }

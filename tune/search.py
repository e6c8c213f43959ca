"""The driver of a search: Ray Tune in a thread, rows on disk, a table in the terminal, a clean end on Ctrl-C."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.tune

from console import RunError, StoppedByRequest, UserError, error_line, say
from data.records import Corpus
from evaluation.asking.question_files import read_questions
from evaluation.engines.options import EngineOptions
from evaluation.exam import Exam, build_exam
from evaluation.score_files import TrainedArm
from experiment import Experiment
from trainer.cpus import cpus_for
from trainer.ray_group import our_environment
from trainer.watch.heartbeat import stop_file
from trainer.watch.supervise import cause
from tune.config import SearchConfig
from tune.deciding.ledger import Ledger, Row
from tune.deciding.objective import exam_for_search
from tune.deciding.proposals import num_left, remaining, tune_settings
from tune.deciding.stopping import Cached, Ends, cap_reached, cut, make_scheduler
from tune.exam_desk import ExamDesk, Sheet
from tune.keeping import sweep
from tune.report.show import Show
from tune.report.winner import TEST
from tune.trial import Task, run_base, run_trial

_POLL_S = 0.5
_SAVE_S = 120.0
"""After Ctrl-C trials save at their next step; those that do not come to one are ended without."""


@dataclass(frozen=True)
class Layout:
    """How trials and the exam share the machines."""

    gpus: int
    """Of one trial; 0: CPUs."""
    exam_gpus: int
    workers: tuple[int, int] | None
    """Of a trial's Ray Train group; None: its own process trains."""
    concurrent: int
    turns: bool
    """Trial and exam cannot hold their GPUs at once: the engine goes after each exam, and a trial's group before it."""

    def cpus_needed(self, search: SearchConfig) -> float:
        a_trial = 1 + cpus_for(self.workers[1]) if self.workers else search.cpus_per_trial
        return self.concurrent * a_trial + 1


def lay_out(search: SearchConfig, num_workers: Any, exam_gpus: int | None, gpus: int, cpus: int) -> Layout:
    """Raises UserError "search.…: reason" where a trial cannot fit, whatever waits; `gpus`, `cpus`: there are in all."""
    asked = num_workers if isinstance(num_workers, tuple) else (num_workers,) * 2 if num_workers else None
    if not gpus:
        if search.gpus_per_trial:
            raise UserError(f"gpus_per_trial: {search.gpus_per_trial} is more than the 0 GPUs there are")
        workers = asked if asked and asked[1] > 1 else None
        fitting = max(1, int(cpus // (workers[1] if workers else search.cpus_per_trial)))
        return Layout(0, 0, workers, search.max_concurrent or fitting, False)
    each = search.gpus_per_trial if search.gpus_per_trial is not None else asked[0] if asked else 1
    exam = min(1, gpus) if exam_gpus is None else exam_gpus
    if not each:
        raise UserError("gpus_per_trial: 0 leaves trials without the GPUs that there are; hide them (CUDA_VISIBLE_DEVICES=) or give 1")
    if each > gpus:
        raise UserError(f"gpus_per_trial: {each} is more than the {gpus} GPUs there are")
    if exam > gpus:
        raise UserError(f"exam.gpus: {exam} is more than the {gpus} GPUs there are")
    turns = each + exam > gpus
    alone = each == 1 and not turns
    fitting = 1 if turns else (gpus - exam) // each
    return Layout(each, exam, None if alone else (each, each), min(search.max_concurrent or fitting, fitting), turns)


class Search:
    """One start of a search in a run folder. Ray must be connected."""

    def __init__(
        self, experiment: Experiment, values: dict[str, Any], arm: str, layout: Layout, validation: Corpus, options: EngineOptions
    ) -> None:
        assert experiment.search is not None
        self._experiment, self._search, self._layout = experiment, experiment.search, layout
        self._folder = experiment.folder.resolve()
        self._ledger = Ledger(self._folder)
        self._rows: Callable[[], list[Row]] = Cached(self._ledger.rows)
        self._task = Task(
            str(self._folder),
            values,
            arm,
            self._search,
            layout.gpus > 0,
            layout.gpus,
            layout.exam_gpus,
            layout.workers,
            environment=our_environment(),
        )
        self._desk = self._open_desk(validation, options)
        self._signum: int | None = None
        self._ending: str | None = None
        """Why the search ends before it is through; trials are saving since `_asked_at`."""
        self._asked_at = 0.0

    def _open_desk(self, validation: Corpus, options: EngineOptions) -> Any:
        config = exam_for_search(self._experiment.exam, self._search)
        retention = read_questions(Path(config.retention)) if config.retention else []
        seed = self._experiment.seed
        exam = build_exam(validation, config.without("wordings"), seed, ("closed",), retention)
        choices = validation.part("test").choices if self._search.metric == "choices" else []
        guard = self._search.guard.set if self._search.guard else None
        sheet = Sheet(exam, choices, self._search.metric, guard, config.resamples, seed)
        actor = ray.remote(ExamDesk).options(num_cpus=0, max_restarts=-1, max_task_retries=2)  # all trials need it
        return actor.remote(str(self._ledger.folder), sheet, replace(options, cpus=min(options.cpus, 1)), self._layout.turns)

    def run(self) -> str | None:
        """Trains and examines until nothing is left; why it ended before that, or None. Ctrl-C and SIGTERM save first, then raise."""
        stop_file(self._ledger.folder).unlink(missing_ok=True)
        for place in (self._ledger.folder / "work").glob("*"):
            stop_file(place).unlink(missing_ok=True)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            base = self._base()
            if base is not None:
                self._task = replace(self._task, guard_base=base["guard"])
                self._trials(base)
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)
            self._close_rows()
            sweep(self._folder, self._search, self._ledger.rows(), at_end=False)
        if self._signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signum is not None:
            raise StoppedByRequest("stopped as asked; what was trained is saved, and the same command goes on from there")
        return self._ending

    def sit_test(self, arms: list[TrainedArm], exam: Exam) -> None:
        """The engine that has examined the trials examines these in another exam. Raises RunError."""
        try:
            ray.get(self._desk.sit.remote(arms, exam, str(self._ledger.folder / TEST)))
        except ray.exceptions.RayError as error:
            raise RunError(f"the test could not be taken: {cause(error)}") from error

    def close(self) -> None:
        """Ends the exam's engine."""
        with suppress(ray.exceptions.RayError):
            ray.get(self._desk.close.remote(), timeout=_SAVE_S)
            ray.kill(self._desk)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            raise KeyboardInterrupt
        self._signum = signum
        self._end("interrupted")
        say("saving and stopping at the next step; once more to stop at once")

    def _end(self, why: str) -> None:
        """Trials save at their next step and wait; see _over."""
        if self._ending is None:
            self._ending, self._asked_at = why, time.monotonic()
            stop_file(self._ledger.folder).touch()

    def _base(self) -> dict[str, Any] | None:
        """What all trials share is trained once, by a task with a trial's resources; None where it was stopped."""
        say("the base: what all trials start from")
        run = ray.remote(run_base).options(**self._resources(), max_retries=0)
        call = run.remote(self._task, self._desk)
        while not ray.wait([call], timeout=_POLL_S)[0]:
            if self._too_slow_to_save():
                ray.cancel(call, force=True)
                return None
        try:
            found: dict[str, Any] = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            why = error.cause
            if isinstance(why, StoppedByRequest):
                return None
            raise why if isinstance(why, RunError | UserError) else RunError(f"the base failed: {why}") from error
        return found

    def _resources(self) -> dict[str, Any]:
        if self._layout.workers:  # its group asks for what it needs
            return {"num_cpus": 1, "num_gpus": 0}
        return {"num_cpus": self._search.cpus_per_trial, "num_gpus": self._layout.gpus}

    def _trials(self, base: dict[str, Any]) -> None:
        rows = self._ledger.rows()
        left = num_left(self._search, self._experiment.seed, rows)
        total = sum(row.finished for row in rows) + left
        mean = base["score"]["mean"]
        say(
            f"{total} trials: {total - left} have ended, {left} to go, {self._layout.concurrent} at a time; the base has {self._search.metric} "
            + (f"{mean:.3f}" if self._search.metric == "document_loss" else f"{100 * mean:.1f} %")
        )
        ends = Ends(self._search, self._rows, self._over)
        if not left or ends.stop_all():
            return
        with Show(self._folder, self._search, total) as show:
            show.known(rows)
            for until in self._rounds():
                self._fit(until, ends, show)
                if self._ending:
                    return
                for row, reason in cut(self._search, self._ledger.rows(), until, self._task.guard_base) if until < 1 else ():
                    row.state, row.reason = "stopped", reason
                    self._ledger.write(row)

    def _rounds(self) -> list[float]:
        """Shares of the schedule at which all trials wait for each other; under every scheduler but halving the end alone."""
        stopping = self._search.stopping
        return [*stopping.rungs, 1.0] if stopping.scheduler == "halving" else [1.0]

    def _fit(self, until: float, ends: Ends, show: Show) -> None:
        """Ray Tune over the trials that are left, as far as this round goes."""
        rows = self._ledger.rows()
        if remaining(self._search, self._experiment.seed, rows, until) == []:
            return
        tuner = self._tuner(rows, ends, until)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                tuner.fit()
            except BaseException as error:
                failure.append(error)

        # In a thread, so that signals reach this one: Ray Tune would answer Ctrl-C by ending at once.
        thread = threading.Thread(target=work, daemon=True, name="ray-tune")
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            rows = self._rows()
            show.poll(rows)
            sweep(self._folder, self._search, rows, at_end=False)
        show.poll(self._ledger.rows())
        if failure:
            raise RunError(f"Ray Tune failed: {error_line(failure[0])}") from failure[0]

    def _tuner(self, rows: list[Row], ends: Ends, until: float) -> ray.tune.Tuner:
        storage = self._ledger.folder / "ray"
        # Else relative paths of the experiment would mean a folder of Ray's to trials; Ray Tune hands this on to them.
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        shutil.rmtree(storage, ignore_errors=True)  # what is known stands in the ledger; Ray's own records would only grow
        param_space, more = tune_settings(self._search, self._experiment.seed, rows, until, self._task.guard_base)
        resources = self._resources()
        trainable = ray.tune.with_resources(
            ray.tune.with_parameters(run_trial, task=replace(self._task, until=until), desk=self._desk),
            {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]},
        )
        return ray.tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=ray.tune.TuneConfig(
                **more,
                scheduler=make_scheduler(self._search, rows, self._task.guard_base),
                max_concurrent_trials=self._layout.concurrent,
                reuse_actors=True,  # a process that has imported DeepSpeed trains the next trial at once: 10 s saved each
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name=f"{self._experiment.name}-{time.time_ns()}",  # a name that was there before would make Ray resume, silently
                storage_path=str(storage),
                stop=ends,
                callbacks=[_Rows(self._ledger, ends)],
                failure_config=ray.tune.FailureConfig(max_failures=0),  # trainer/watch/supervise.py has tried again already
                verbose=0,
            ),
        )

    def _over(self) -> str | None:
        """Why Ray Tune must end every trial now: not before those that run have saved."""
        rows = self._rows()
        if self._ending is None and (cap := cap_reached(self._search, rows)):
            self._end(cap)
        busy = any(row.state == "running" for row in rows)
        return None if busy and not self._too_slow_to_save() else self._ending

    def _too_slow_to_save(self) -> bool:
        return self._ending is not None and time.monotonic() - self._asked_at > _SAVE_S

    def _close_rows(self) -> None:
        """What still counts as running does not run any more."""
        for row in self._ledger.rows():
            if row.state == "running":
                row.state = "paused"
                self._ledger.write(row)


class _Rows(ray.tune.Callback):  # type: ignore[misc]
    """Rows of trials that Ray Tune ended: they cannot write their own end."""

    def __init__(self, ledger: Ledger, ends: Ends) -> None:
        self._ledger, self._ends = ledger, ends

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._ledger.read_values(trial.config["values"])
        if row is None or row.state != "running":
            return
        if self._ends.ended or row.last is None:
            row.state = "paused"
        else:
            row.state = "stopped"
            row.reason = self._ends.reasons.get(row.id) or f"not among the best at {100 * row.last.share:g} % of its schedule"
        self._ledger.write(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._ledger.read_values(trial.config["values"])
        if row is None or row.state == "running":  # its process died before it could say why
            row = row or self._ledger.begin(trial.config["values"])
            row.state, row.reason = "failed", "its process died (killed, crashed, or out of host memory; dmesg and the log know more)"
            self._ledger.write(row)


def concurrency_note(layout: Layout) -> str:
    """For people: what a trial is given."""
    what = f"{layout.gpus} GPU(s)" if layout.gpus else "one process" if layout.workers is None else f"{layout.workers[1]} processes"
    taking = "; trials and the exam take turns on the GPUs" if layout.turns else ""
    return f"{what} a trial, {layout.concurrent} at a time{taking}"


def num_cpus() -> int:
    return math.floor(ray.cluster_resources().get("CPU", 1)) if ray.is_initialized() else os.cpu_count() or 1

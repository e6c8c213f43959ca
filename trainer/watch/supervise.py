"""The driver's loop around training: tries again from the newest checkpoint, bounded and said aloud; ends cleanly when asked to.

Ray could restart a worker group itself, but it counts every failure alike, with a default of none, and cannot tell a run that gets on
from one that fails at the same step for ever. Here a failure counts only when nothing was committed since the one before.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from console import RunError, StoppedByRequest, UserError, error_line, say
from data.rows.lessons import BEGUN
from trainer.jobs.prepare import Job
from trainer.store.checkpoint import checkpoints
from trainer.store.stages import StageStore
from trainer.watch.heartbeat import stop_file

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_MEMORY = ("can't allocate memory", "out of memory", "OutOfMemory", "MemoryError", "Cannot allocate memory")
_FATAL = (UserError, RunError)


def resume_points(store: StageStore, jobs: list[Job]) -> dict[str, int]:
    """For each job the step to go on from: the newest committed checkpoint of this very stage, or 0."""
    points = {}
    for job in jobs:
        steps = [c.step for c in checkpoints(store.folder(job.key)) if c.manifest["job"]["key"] == job.key and c.step < job.num_steps]
        points[job.key] = max(steps, default=0)
    return points


@dataclass
class StopRequest:
    """What a signal left; `signum` None: nothing."""

    signum: int | None = None


@contextmanager
def stop_on_signals(run_folder: Path) -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM ask for a checkpoint and an end at the next step; a second one ends at once."""
    request = StopRequest()
    path = stop_file(run_folder)
    path.unlink(missing_ok=True)

    def handler(signum: int, frame: FrameType | None) -> None:
        if request.signum is not None:
            raise KeyboardInterrupt
        request.signum = signum
        path.touch()
        say("saving and stopping at the next step; once more to stop at once")

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        path.unlink(missing_ok=True)


def raise_if_stopped(request: StopRequest) -> None:
    if request.signum == signal.SIGINT:
        raise KeyboardInterrupt
    if request.signum is not None:
        raise StoppedByRequest("stopped as asked; what was trained is saved, and the same command goes on from there")


def supervise(
    store: StageStore,
    pending: Callable[[], list[Job]],
    attempt: Callable[[list[Job], dict[str, int]], None],
    poll: Callable[[], None],
    request: StopRequest,
    max_failures: int,
) -> None:
    """Calls `attempt(jobs, resume points)` in a thread until nothing is pending; `poll` twice a second meanwhile, in this thread.

    RunError when it fails max_failures + 1 times in a row without a new commit between, or at once where trying again cannot help.
    """
    failures = 0
    while todo := pending():
        points = resume_points(store, todo)
        before = _progress(todo, points)
        try:
            _in_thread(lambda todo=todo, points=points: attempt(todo, points), poll)  # type: ignore[misc]
            raise_if_stopped(request)
            if _progress(pending(), resume_points(store, pending())) == before:
                raise RuntimeError(
                    "training ended without an error and without a result"
                )  # a node was to be taken away before anything could be saved
        except (KeyboardInterrupt, StoppedByRequest):
            raise
        except Exception as error:
            why = cause(error)
            if fatal := _fatal(error):
                raise type(fatal)(str(fatal)) from error
            if request.signum is not None:
                raise RunError(f"stopped as asked, but what was trained since the last checkpoint is not saved: {why}") from error
            left = pending()
            points = resume_points(store, left)
            failures = 1 if _progress(left, points) != before else failures + 1
            if failures > max_failures:
                raise RunError(f"training failed {failures} times in a row at the same place: {why}") from error
            pause_s = min(_FIRST_PAUSE_S * 2 ** (failures - 1), _LONGEST_PAUSE_S)
            where = f"{left[0].label}, step {points[left[0].key] + 1}" if left else "the end"
            say(f"training failed: {why}")
            say(f"going on from {where} in {pause_s:.0f} s (failure {failures} in a row, at most {max_failures})")
            until = time.monotonic() + pause_s
            while time.monotonic() < until and request.signum is None:
                time.sleep(min(0.2, pause_s))
        raise_if_stopped(request)  # no new attempt only to stop it


def cause(error: BaseException) -> str:
    """What a person needs to know; the log has the rest. Memory errors are told apart, with a remedy."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    first = error_line(error)
    if "worker process has died" in text or "worker died" in text.lower():
        ranks = sorted(getattr(error, "worker_failures", {}))
        who = f"the process of rank {ranks[0]}" if ranks else "a training process"
        first = f"{who} died (killed, crashed, or out of host memory; dmesg and the log know more)"
    told = next((line for line in reversed(lines) if any(word in line for word in _MEMORY)), None)
    if told:
        return (
            f"out of memory ({told}); lower trainer.row_tokens, raise trainer.zero_stage, or set trainer.gradient_checkpointing "
            "or trainer.offload_optimizer"
        )
    return first


def _fatal(error: BaseException) -> UserError | RunError | None:
    """Our own errors from inside a worker: the same input fails the same way again."""
    if isinstance(error, _FATAL):
        return error
    for failure in getattr(error, "worker_failures", {}).values():
        for candidate in (failure, getattr(failure, "_base_exc", None), getattr(failure, "cause", None), failure.__cause__):
            if isinstance(candidate, _FATAL):
                return candidate
    return None


def _progress(todo: list[Job], points: dict[str, int]) -> Any:
    """Changes whenever something is committed, or kept of what a teacher has read (trainer/teaching/store.py)."""
    return [(job.key, points[job.key], _read(Path(job.lessons.folder) / BEGUN) if job.lessons else 0) for job in todo]


def _read(begun: Path) -> int:
    try:
        return begun.stat().st_mtime_ns
    except OSError:
        return 0


def _in_thread(work: Callable[[], None], poll: Callable[[], None]) -> None:
    """`work` in a thread, so that signals reach this one: Ray Train would answer Ctrl-C itself, by exiting with 0."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="training")
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        poll()
    if failure:
        raise failure[0]

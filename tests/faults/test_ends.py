"""How runs end and go on: a last save that fails, saves that take too long, storage that shows files late, workers that are silent."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trainer.watch.watchdog as watchdog
from console import RunError, StoppedByRequest
from data.ground.durable import await_file
from data.rows.lessons import BEGUN
from tests.faults.conftest import events_of, oracle, write_experiment
from tests.helpers.groups import Groups
from trainer.config import CheckpointConfig, TrainerConfig
from trainer.drive import _wait_for_room, await_told
from trainer.jobs.prepare import Job
from trainer.store.checkpoint import checkpoints
from trainer.store.stages import StageStore, write_json
from trainer.watch.guard import Guard
from trainer.watch.heartbeat import heartbeat_folder, stop_file
from trainer.watch.supervise import StopRequest, supervise

# ── the last save ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fails, rank", [(False, "0"), (True, "1")])
def test_a_last_save_that_fails_is_a_failure(groups: Groups, tmp_path: Path, fails: bool, rank: str) -> None:
    """Asked to stop, workers save and end: well where the save does, as a failure on every rank where it does not, on whichever rank."""
    experiment, run = write_experiment(tmp_path), tmp_path / "runs" / "small"

    def stop_in_a_step() -> None:
        _until((run / "progress.json").exists)  # after the first step
        stop_file(run).touch()

    asking = threading.Thread(target=stop_in_a_step)
    asking.start()
    failing = {"STUDYHALL_FAIL": f"step.begin=sleep:0.05{',fragment.before_data=disk' if fails else ''}", "STUDYHALL_FAIL_RANK": rank}
    codes = groups(experiment, "trainer.checkpoint.every_steps=null", **failing)
    asking.join()
    (stage,) = (run / "stages").iterdir()
    assert codes == ([1, 1] if fails else [0, 0]) and len(checkpoints(stage)) == (0 if fails else 1)
    if fails:
        assert "the last checkpoint before the end could not be saved" in Path(f"{experiment}.0.log").read_text()


@pytest.mark.parametrize("signum, ends", [(signal.SIGTERM, StoppedByRequest), (signal.SIGINT, KeyboardInterrupt), (None, None)])
@pytest.mark.parametrize(
    "failure", [None, RunError("the last checkpoint before the end could not be saved: no space left"), ValueError("a worker died")]
)
def test_a_failed_end_is_exit_code_1_whoever_asked(tmp_path: Path, signum: int | None, ends: Any, failure: Exception | None) -> None:
    job: Any = SimpleNamespace(key="a1", num_steps=5, label="a", lessons=None)
    request = StopRequest()

    def attempt(jobs: list[Job], points: dict[str, int]) -> None:
        request.signum = signum
        if failure:
            raise failure

    with pytest.raises(RunError if failure or not ends else ends) as caught:
        supervise(StageStore(tmp_path), lambda: [job], attempt, lambda: None, request, 0)
    if failure and signum and not isinstance(failure, RunError):
        assert "stopped as asked, but what was trained since the last checkpoint is not saved" in str(caught.value)


def test_a_stop_in_the_pause_after_a_failure_starts_nothing(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(key="a1", num_steps=5, label="a", lessons=None)
    request, attempts = StopRequest(), []

    def attempt(jobs: list[Job], points: dict[str, int]) -> None:
        attempts.append(points)
        threading.Timer(0.3, lambda: setattr(request, "signum", signal.SIGTERM)).start()
        raise ValueError("a worker died")

    began = time.monotonic()
    with pytest.raises(StoppedByRequest):
        supervise(StageStore(tmp_path), lambda: [job], attempt, lambda: None, request, 3)
    assert len(attempts) == 1 and time.monotonic() - began < 2


@pytest.mark.parametrize("reads", [True, False])
def test_a_node_that_is_to_leave_in_a_teachers_pass_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """Its ranks come back with nothing committed and no error: tried again, and no failure where more was read meanwhile. The twin reads nothing: it gives up."""
    monkeypatch.setattr("trainer.watch.supervise._FIRST_PAUSE_S", 0.01)
    job: Any = SimpleNamespace(key="a1", num_steps=5, label="a", lessons=SimpleNamespace(folder=str(tmp_path)))
    attempts: list[int] = []

    def attempt(jobs: list[Job], points: dict[str, int]) -> None:
        attempts.append(len(attempts))
        if reads:
            (tmp_path / BEGUN).write_text("")
            os.utime(tmp_path / BEGUN, ns=(len(attempts), len(attempts)))

    def pending() -> list[Job]:
        return [] if len(attempts) == 4 else [job]

    if reads:
        supervise(StageStore(tmp_path), pending, attempt, lambda: None, StopRequest(), 1)
        assert len(attempts) == 4
    else:
        with pytest.raises(RunError, match="failed 2 times in a row at the same place: .*without a result"):
            supervise(StageStore(tmp_path), pending, attempt, lambda: None, StopRequest(), 1)


def test_a_stop_while_waiting_for_nodes() -> None:
    """It waited to the end, ten minutes at most, and ended in "the cluster has room for 0 workers"."""
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    assert _wait_for_room(lambda: 0, (2, 2), 60, stop.is_set) is None and time.monotonic() - began < 3
    with pytest.raises(RunError, match="room for 0 workers"):
        _wait_for_room(lambda: 0, (2, 2), 0.1)


def test_a_torn_line_of_events_is_passed_over(tmp_path: Path) -> None:
    """It ended the watch, and a second group was started beside the one that trained."""
    (tmp_path / "logs").mkdir()
    events = watchdog.Events(tmp_path)
    (tmp_path / "logs/events-0.jsonl").write_text('{"message": "one"}\n{"mess{"message": "two"}\n{"message": "three"}\n')
    assert [event["message"] for event in events.new()] == ["one", "three"] and events.new() == []


# ── saves that take longer than their interval ───────────────────────────────────────────────────────────────────────────────────


class Beat:
    stop_requested = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell_once(self, topic: str, message: str) -> None:
        self.told.append(message)


@pytest.mark.parametrize(
    "busy, took_s, passed_s, saves", [(False, 0, 61, 1), (False, 0, 59, 0), (True, 0, 61, 0), (False, 200, 150, 0), (False, 200, 201, 1)]
)
def test_the_interval_is_at_least_as_long_as_a_save(busy: bool, took_s: float, passed_s: float, saves: int) -> None:
    """A minute is asked for; a save that is under way is not waited for, and one that took 200 s is not made every minute."""
    beat, config = Beat(), TrainerConfig(checkpoint=CheckpointConfig(every_minutes=1.0))
    saver: Any = SimpleNamespace(busy=busy, took_s=took_s)
    guard = Guard(SimpleNamespace(module=None), saver, beat, config, "key", 0)  # type: ignore[arg-type]
    guard._saved_at = time.monotonic() - passed_s
    assert guard.wishes(7)[0] == saves
    assert beat.told == (["saves take longer than 1 minutes (trainer.checkpoint.every_minutes): fewer are made"] if busy else [])


# ── storage that is late ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_storage_that_shows_files_late_loses_nothing(groups: Groups, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Ranks see what the other has written a second later: saves, the next stage, its parent. The twin: without patience it fails."""
    experiment = write_experiment(tmp_path)
    every = "trainer.checkpoint.every_steps=25"
    assert groups(experiment, every, TESTS_STORAGE_LATE_S="1", STUDYHALL_LATE_S="20") == [0, 0], Path(f"{experiment}.0.log").read_text()[
        -2000:
    ]
    assert oracle(tmp_path / "runs" / "small") == undisturbed
    assert "could not be saved" not in events_of(tmp_path / "runs" / "small")
    hasty = write_experiment(tmp_path, "hasty")
    assert groups(hasty, every, TESTS_STORAGE_LATE_S="1", STUDYHALL_LATE_S="0") != [0, 0]


def test_the_driver_waits_for_what_it_was_told(tmp_path: Path) -> None:
    """A checkpoint that ranks have committed and storage does not show yet would be trained again."""
    late = tmp_path / "stages/a1/checkpoints/step-00000020/manifest.json"
    write_json(tmp_path / "stages/b2/manifest.json", {})
    told = {"stages/a1/checkpoints/step-00000010/manifest.json", str(late.relative_to(tmp_path)), "stages/b2/manifest.json"}
    told |= {"stages/b2/checkpoints/step-00000099/manifest.json"}  # gone with the stage's end
    timer = threading.Timer(0.4, lambda: write_json(late, {}))
    timer.start()
    started = time.monotonic()
    await_told(tmp_path, told)
    assert late.exists() and 0.3 < time.monotonic() - started < 1.9
    timer.join()


def test_a_file_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDYHALL_LATE_S", "0.1")
    with pytest.raises(FileNotFoundError, match="is not to be seen here after 0 s, though it was written"):
        await_file(tmp_path / "gone" / "manifest.json")


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watched:
    """A watchdog with a clock of its own, beats of two ranks, and a list of who was killed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.killed, self.through_ray = 1000.0, [], {}
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.folder = heartbeat_folder(folder)
        self.dog = watchdog.Watchdog(
            folder, lambda beats, culprits: self.killed.extend(b["rank"] for b in culprits), lambda: self.through_ray
        )
        self.beats = {rank: self.beat(rank) for rank in (0, 1)}

    def beat(self, rank: int, **more: Any) -> dict[str, Any]:
        return {"rank": rank, "pid": 100 + rank, "node": "n", "phase": "step", "step": 3, "for_s": 0.1, "limit_s": 60.0, "beat": 1, **more}

    def pass_s(self, seconds: float, alive: tuple[int, ...], **more: Any) -> str | None:
        """These ranks beat, through Ray; the others say nothing."""
        self.now += seconds
        for rank in alive:
            self.beats[rank] = {**self.beats[rank], "beat": self.beats[rank]["beat"] + 1, **more}
        self.through_ray = dict(self.beats)
        return self.dog.poll()


def test_a_silent_rank_is_found_after_thirty_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path, monkeypatch)
    watched.pass_s(0, (0, 1))
    assert watched.pass_s(29, (0,)) is None
    told = watched.pass_s(2, (0,))
    assert told is not None and told.startswith("rank 1 (phase step, step 4) silent for 30 s") and watched.killed == [1]


def test_silence_does_not_count_while_something_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path, monkeypatch)
    watched.pass_s(0, (0, 1))
    assert watched.pass_s(100, (0,), saving=True) is None
    assert watched.pass_s(1, (0, 1), saving=False) is None, "it was the storage"
    watched.pass_s(20, (0,), saving=True)
    told = watched.pass_s(290, (0,), saving=True)
    assert told is not None and "silent for 300 s" in told, "the twin: nothing saves so long"


def test_files_that_stand_still_do_not_silence_who_speaks_through_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path, monkeypatch)
    for rank, beat in watched.beats.items():
        write_json(watched.folder / f"rank-{rank:05d}.json", beat)
    for _ in range(10):
        assert watched.pass_s(10, (0, 1)) is None
    watched.through_ray = {}
    watched.now += 31
    assert watched.dog.poll() is not None, "the twin: the files alone are an old word"


def test_who_has_ended_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path, monkeypatch)
    watched.pass_s(0, (0, 1), closed=True, committed=["stages/a1/manifest.json"])
    assert watched.pass_s(500, ()) is None and watched.dog.committed == {"stages/a1/manifest.json"}


def test_beats_travel_through_ray(ray_cluster: str, tmp_path: Path) -> None:
    """Storage of the files is of no account: the driver hears a rank whose heartbeat folder cannot be written, and the rank hears it."""
    from trainer.watch.beat_board import Board, Line
    from trainer.watch.heartbeat import Heartbeat

    (tmp_path / "logs").mkdir()
    board = Board()
    beat = Heartbeat(tmp_path, 0, "node", 9.0, line=Line(board.actor))
    try:
        beat.enter("step", 30.0, 7)
        beat.committed("stages/a1/manifest.json")
        heard = _until(lambda: board.beats().get(0, {}).get("step") == 7 and board.beats())
        assert heard[0]["committed"] == ["stages/a1/manifest.json"] and not beat.stop_requested
        board.stop()
        assert _until(lambda: beat.stop_requested)
    finally:
        beat.close()
    assert _until(lambda: board.beats().get(0, {}).get("closed")) and json.dumps(board.beats())
    board.close()
    assert _until(lambda: board.beats() == {})


def _until(what: Any, limit_s: float = 20.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found

"""Faults of training processes, tried on groups of two gloo ranks: what happens inside a rank does not depend on Ray."""

import json
import os
import random
import re
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import KILLED_AFTER_30, events_of, oracle, write_experiment
from tests.faults.promises import F1, F2, F6, F7, F8, F9, F10, F11, F12
from tests.helpers.forked import EXIT_CORRUPT
from tests.helpers.groups import Groups
from trainer.store.checkpoint import checkpoints

SLOW = pytest.mark.slow  # in `make faults` only; every run tries F1, F7, F9, F10, F11 and F15


def stage_folders(run: Path) -> list[Path]:
    return sorted((run / "stages").iterdir(), key=lambda path: path.stat().st_mtime)


def kill_once(groups: Groups, experiment: Path, point: str, tmp_path: Path, rank: str | None = None) -> None:
    env = {"STUDYHALL_FAIL": f"{point}=kill", "STUDYHALL_FAIL_ONCE": str(tmp_path / "once")} | (
        {"STUDYHALL_FAIL_RANK": rank} if rank else {}
    )
    codes = groups(experiment, **env)
    assert -9 in codes, f"{point}: nothing was killed: {codes}"


@F1
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_random_steps(groups: Groups, undisturbed: dict, tmp_path: Path, seed: int) -> None:  # type: ignore[type-arg]
    """Before the forward pass, in the backward pass, and before the all-reduce of a step, in either rank and either stage."""
    rng = random.Random(seed)
    experiment = write_experiment(tmp_path)
    for point in ("step.begin", "step.backward", "step.end"):
        env = {"STUDYHALL_FAIL": f"{point}=kill@{rng.randint(1, 30)}", "STUDYHALL_FAIL_RANK": str(rng.randint(0, 1))}
        before = newest(tmp_path / "runs/small")
        assert -9 in groups(experiment, **env)
        assert newest(tmp_path / "runs/small") >= before
    assert groups(experiment) == [0, 0]
    assert oracle(tmp_path / "runs/small") == undisturbed


@SLOW
@pytest.mark.timeout(600)
@F1
def test_twenty_random_sigkills(groups: Groups, undisturbed: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """A run that lasts two minutes undisturbed (1.2 s a step); one rank or the other is killed 1 to 9 s after training goes on."""
    experiment, rng = write_experiment(tmp_path), random.Random(20)
    kills: list[int] = []
    over = threading.Event()

    def killer() -> None:
        while len(kills) < 20 and not over.wait(0.2):
            pids = [beat["pid"] for beat in beats_of(tmp_path / "runs/small") if beat["phase"] == "step" and beat["pid"] not in kills]
            if len(pids) == 2 and not over.wait(rng.uniform(1, 9)):
                try:
                    os.kill(rng.choice(pids), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills.extend(pids[:1])
                over.wait(2)  # until the group is gone

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    tries = 0
    codes = [-9]
    while codes != [0, 0]:
        tries += 1
        assert tries <= 25, "it does not get on"
        codes = groups(experiment, "trainer.checkpoint.every_steps=2", limit_s=300, STUDYHALL_FAIL="step.begin=sleep:1.2")
    over.set()
    thread.join(timeout=10)
    assert len(kills) == 20, f"only {len(kills)} kills before the run was over"
    assert oracle(tmp_path / "runs/small") == undisturbed


def beats_of(run: Path) -> list[dict[str, Any]]:
    beats = []
    for path in sorted((run / "heartbeats").glob("rank-*.json")):
        with suppress(OSError, ValueError):  # it is being replaced, or its rank has ended
            beats.append(json.loads(path.read_text()))
    return beats


def newest(run: Path) -> tuple[int, int]:
    """(committed stages, steps of the newest checkpoint): what a kill must never lower."""
    steps = [c.step for stage in (run / "stages").glob("*") for c in checkpoints(stage)]
    return len(list((run / "stages").glob("*/manifest.json"))), max(steps, default=0)


@SLOW
@F2
@pytest.mark.parametrize("action", ["raise", "oom"])
def test_exceptions(groups: Groups, undisturbed: dict, tmp_path: Path, action: str) -> None:  # type: ignore[type-arg]
    experiment = write_experiment(tmp_path)
    assert 1 in groups(experiment, STUDYHALL_FAIL=f"step.backward={action}@25", STUDYHALL_FAIL_RANK="1")
    assert newest(tmp_path / "runs/small")[1] >= 10
    assert groups(experiment) == [0, 0]
    assert oracle(tmp_path / "runs/small") == undisturbed


@F7
def test_killed_at_every_point_of_a_save(groups: Groups, undisturbed: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    experiment = write_experiment(tmp_path)
    points = [
        "fragment.before_data", "fragment.mid_file", "checkpoint.before_manifest", "checkpoint.after_manifest", "checkpoint.cleanup",
        "stage.before_manifest", "stage.after_manifest",
    ]  # fmt: skip
    for point in points:
        before = newest(tmp_path / "runs/small")
        kill_once(groups, experiment, point, tmp_path)
        assert newest(tmp_path / "runs/small") >= before, point
    assert groups(experiment) == [0, 0]
    assert oracle(tmp_path / "runs/small") == undisturbed
    left = [path.name for path in (tmp_path / "runs/small/stages").rglob("*") if path.name.startswith((".", "step-", "checkpoints"))]
    assert left == [], "what a kill left behind was not cleaned"


@SLOW
@F8
def test_disk_full(groups: Groups, undisturbed: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """Two saves fail, then there is room again: the run ends well. With every save failing it ends with an error and its old checkpoint."""
    experiment = write_experiment(tmp_path)
    assert groups(experiment, STUDYHALL_FAIL="fragment.before_data=disk@2,fragment.before_data=disk@3", STUDYHALL_FAIL_RANK="1") == [0, 0]
    assert oracle(tmp_path / "runs/small") == undisturbed
    assert "No space left on device" in events_of(tmp_path / "runs/small")
    worse = write_experiment(tmp_path, "worse")
    always = ",".join(f"fragment.before_data=disk@{n}" for n in range(2, 9))
    assert 1 in groups(worse, STUDYHALL_FAIL=always, STUDYHALL_FAIL_RANK="1")
    assert newest(tmp_path / "worse/small") == (0, 10), "the checkpoint from before the disk was full must stay"
    assert "3 checkpoints in a row could not be saved" in Path(f"{worse}.1.log").read_text()
    assert groups(worse) == [0, 0]
    assert oracle(tmp_path / "worse/small") == undisturbed


@pytest.fixture(scope="module")
def killed_after_30(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its runs: two checkpoints of the first stage, of 20 and of 30 steps."""
    experiment = write_experiment(tmp_path_factory.mktemp("killed"))
    assert -9 in groups(experiment, STUDYHALL_FAIL=KILLED_AFTER_30, STUDYHALL_FAIL_RANK="0")
    return experiment.parent / "runs"


@F9
@pytest.mark.parametrize("damage", ["bit", "truncated", "missing", "other model", "manifest"])
def test_damaged_checkpoint(groups: Groups, undisturbed: dict, killed_after_30: Path, tmp_path: Path, damage: str) -> None:  # type: ignore[type-arg]
    experiment = write_experiment(tmp_path)
    shutil.copytree(killed_after_30, tmp_path / "runs")
    (stage,) = stage_folders(tmp_path / "runs/small")
    last, before = checkpoints(stage)
    assert (last.step, before.step) == (30, 20)
    file = last.folder / "rank-00001.safetensors"
    if damage == "bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    elif damage == "other model":
        manifest = {**last.manifest, "job": {**last.manifest["job"], "key": "0" * 16}}
        (last.folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        (last.folder / "manifest.json").write_text('{"step": 3')
    codes = groups(experiment)
    if damage in ("other model", "manifest"):  # never looked at: there is no such checkpoint
        assert codes == [0, 0]
    else:
        assert EXIT_CORRUPT in codes
        assert "rank-00001.safetensors" in Path(f"{experiment}.0.log").read_text()
        assert groups(experiment) == [0, 0]  # from the one before
    assert oracle(tmp_path / "runs/small") == undisturbed


@F9
def test_damaged_stage_is_trained_again(groups: Groups, undisturbed: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    experiment = write_experiment(tmp_path)
    assert -9 in groups(experiment, STUDYHALL_FAIL="stage.after_manifest=kill")  # the first stage is committed, the second has not begun
    (stage,) = stage_folders(tmp_path / "runs/small")
    file = stage / "weights" / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert EXIT_CORRUPT in groups(experiment)
    assert groups(experiment) == [0, 0]
    assert oracle(tmp_path / "runs/small") == undisturbed


@F10
@pytest.mark.parametrize(
    ("world_sizes", "zero_stages"),
    [((4, 2, 3), (2, 2, 2)), pytest.param((1, 2, 4), (1, 3, 2), marks=SLOW), pytest.param((2, 1, 2), (3, 1, 2), marks=SLOW)],
)
def test_other_ranks(groups: Groups, undisturbed: dict, tmp_path: Path, world_sizes: tuple, zero_stages: tuple) -> None:  # type: ignore[type-arg]
    """Killed twice on the way through the first stage, gone on elsewhere."""
    experiment = write_experiment(tmp_path)
    for n, (world_size, zero_stage) in enumerate(zip(world_sizes, zero_stages, strict=True)):
        env = {"STUDYHALL_FAIL": "step.begin=kill@23", "STUDYHALL_FAIL_RANK": "0"} if n < 2 else {}
        codes = groups(experiment, f"trainer.zero_stage={zero_stage}", world_size=world_size, **env)
        assert (-9 in codes) if n < 2 else codes == [0] * world_size
    ours = oracle(tmp_path / "runs/small")
    assert ours.keys() == undisturbed.keys()
    for key, (steps, _, plan, totals) in ours.items():
        theirs, _, their_plan, their_totals = undisturbed[key]
        assert (plan, totals) == (their_plan, their_totals)
        assert [(s, tokens) for s, _, _, tokens in steps] == [(s, tokens) for s, _, _, tokens in theirs]
        drift = max(abs(float.fromhex(a[1]) - float.fromhex(b[1])) for a, b in zip(steps[:45], theirs[:45], strict=True))
        assert drift < 1e-4, "60 steps of Adam spread rounding; the first steps after each resume are held to 1e-6 in tests/numerics"


@F11
@pytest.mark.parametrize("planted", ["nan", pytest.param("inf", marks=SLOW)])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_loss_that_is_no_number(groups: Groups, undisturbed: dict, tmp_path: Path, planted: str, zero_stage: int) -> None:  # type: ignore[type-arg]
    """One rank, one step: all ranks skip it alike, weights and moments stay, everything after it is finite."""
    experiment = write_experiment(tmp_path)
    env = {"STUDYHALL_FAIL": f"step.loss={planted}@16", "STUDYHALL_FAIL_RANK": "1"}
    assert groups(experiment, f"trainer.zero_stage={zero_stage}", **env) == [0, 0]
    run = tmp_path / "runs/small"
    assert "the step was skipped on all ranks" in events_of(run)
    manifests = [json.loads(path.read_text()) for path in run.glob("stages/*/manifest.json")]
    assert sorted(m["totals"]["bad_steps"] for m in manifests) == [0, 1]
    (stage,) = [path for path in run.glob("stages/*") if json.loads((path / "manifest.json").read_text())["totals"]["bad_steps"]]
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    bad = [row["step"] for row in rows if not (abs(row["loss"]) < 1e9 and row["grad_norm"] < 1e9)]
    assert len(bad) == 1
    clean = {step: float.fromhex(loss) for step, loss, *_ in undisturbed[stage.name][0]}
    if zero_stage == 2:
        assert all(rows[n]["loss"] == clean[n] for n in range(bad[0])), "nothing before the bad step may differ"
    assert rows[bad[0] + 1]["loss"] != clean[bad[0] + 1], "the twin: a step less was taken"
    assert abs(rows[-1]["loss"] - clean[len(rows) - 1]) < 0.5


@F11
def test_spikes_are_told_not_skipped(groups: Groups, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path)
    assert groups(experiment, STUDYHALL_FAIL="step.loss=spike@30") == [0, 0]
    run = tmp_path / "runs/small"
    assert "times the median" in events_of(run)
    assert sum(json.loads(path.read_text())["totals"]["bad_steps"] for path in run.glob("stages/*/manifest.json")) == 0


@F11
def test_many_bad_steps_end_the_run(groups: Groups, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path)
    every = ",".join(f"step.loss=nan@{n}" for n in range(5, 60))
    assert 1 in groups(experiment, STUDYHALL_FAIL=every, STUDYHALL_FAIL_RANK="0")
    assert "for 10 steps up to step" in Path(f"{experiment}.0.log").read_text()


@SLOW
@F12
@pytest.mark.parametrize("rank", ["0", "1", "2"])
def test_a_flipped_weight_is_found(groups: Groups, tmp_path: Path, rank: str) -> None:
    experiment = write_experiment(tmp_path)
    env = {"STUDYHALL_FAIL": "step.end=flip@20", "STUDYHALL_FAIL_RANK": rank}
    # ZeRO 0: under 1 and 2 a step gathers every weight from its owner again, which mends such a fault by itself.
    codes = groups(experiment, "trainer.watch.replicas_every_steps=5", "trainer.zero_stage=0", world_size=3, **env)
    assert 1 in codes
    log = "".join(Path(f"{experiment}.{n}.log").read_text() for n in range(3))
    assert f"rank {rank} holds other weights than the other ranks" in log


@SLOW
@F6
@pytest.mark.parametrize(("rank", "place", "why"), [("1", "step.forward", "computes"), ("0", "loop.data", "waits for data")])
def test_a_straggler_is_named(groups: Groups, tmp_path: Path, rank: str, place: str, why: str) -> None:
    experiment = write_experiment(tmp_path)
    slow = ",".join(f"{place}=sleep:0.3@{n}" for n in range(5, 30))
    assert groups(experiment, STUDYHALL_FAIL=slow, STUDYHALL_FAIL_RANK=rank) == [0, 0]
    assert re.search(rf"rank {rank} is a straggler: it {why} 0\.[23]", events_of(tmp_path / "runs/small"))

"""Faults of the whole thing: real Ray, workers, drivers, signals."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import events_of, oracle, write_experiment
from tests.faults.promises import F1, F2, F3, F4, F5, F11, F13, F14, F15
from tests.faults.test_without_ray import newest
from tests.helpers import late_storage
from tests.helpers.groups import Groups
from tests.helpers.places import ROOT, THREADS
from trainer.store.checkpoint import checkpoints

Recovered = Callable[[float], None]


class Run:
    """`python -m trainer` as a user starts it."""

    def __init__(self, experiment: Path, *overrides: str, address: str | None = None, **env: str) -> None:
        self.run = experiment.parent / experiment.stem / "small"
        self.log = Path(f"{experiment}.log")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": THREADS, **({"RAY_ADDRESS": address} if address else {}), **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer", str(experiment), "--no-exam", *overrides],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=self.log.open("a"), start_new_session=True,
        )  # fmt: skip

    def wait(self, limit_s: float = 200) -> int:
        try:
            return self.process.wait(timeout=limit_s)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)

    def wait_for_step(self, step: int, limit_s: float = 100) -> dict[str, Any]:
        """Until rank 0 has reported this step (0-based) of the first stage, or any step after it."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.said()
            try:
                latest = json.loads((self.run / "progress.json").read_text())
            except (OSError, ValueError):
                latest = {"step": -1}
            if latest["step"] >= step:
                return latest
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached in {limit_s:.0f} s: {self.said()}")

    def beats(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.run / "heartbeats").glob("rank-*.json"))]

    def said(self) -> str:
        return self.log.read_text()


def longest_gap(run: Path) -> float:
    """Seconds between two consecutive steps: from the last one kept to the first one after a restart."""
    gaps = [0.0]
    for path in run.glob("stages/*/metrics.jsonl"):
        times = [json.loads(line)["time"] for line in path.read_text().splitlines()]
        gaps += [b - a for a, b in itertools.pairwise(times)]
    return max(gaps)


@pytest.fixture(scope="module")
def calm(request: pytest.FixtureRequest, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The oracle: what happens when nothing happens. With one thread Ray's workers give the bits of a group without Ray; with two, processes that
    are forked share their work out otherwise than fresh ones, so then it is a run under Ray too."""
    if THREADS == "1":
        return dict(request.getfixturevalue("undisturbed"))
    folder = tmp_path_factory.mktemp("calm")
    run = Run(write_experiment(folder), address=ray_cluster)
    assert run.wait() == 0, run.said()
    return oracle(folder / "runs" / "small")


@pytest.mark.slow
@F1
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sigkill_of_a_worker(ray_cluster: str, calm: dict, tmp_path: Path, recovered: Recovered, seed: int) -> None:  # type: ignore[type-arg]
    rng = random.Random(seed)
    place, rank = rng.choice(["step.begin", "step.backward", "fragment.mid_file"]), str(rng.randint(0, 1))
    turn = rng.randint(2, 6) if place.startswith("fragment") else rng.randint(2, 90)
    env = {"STUDYHALL_FAIL": f"{place}=kill@{turn}", "STUDYHALL_FAIL_RANK": rank, "STUDYHALL_FAIL_ONCE": str(tmp_path / "once")}
    run = Run(write_experiment(tmp_path), address=ray_cluster, **env)
    assert run.wait() == 0, run.said()
    assert "training failed" in run.said() and "going on from" in run.said()
    assert oracle(run.run) == calm
    recovered(longest_gap(run.run))


@pytest.mark.slow
@F2
def test_out_of_memory_is_told_apart(ray_cluster: str, tmp_path: Path) -> None:
    run = Run(write_experiment(tmp_path), "trainer.max_failures=1", address=ray_cluster, STUDYHALL_FAIL="step.forward=oom@3")
    assert run.wait() == 1
    last = run.said().strip().splitlines()[-1]
    assert "failed 2 times in a row" in last and "out of memory" in last and str(2**40) in last and "lower trainer.row_tokens" in last


@pytest.mark.timeout(600)  # two starts of Ray's group
@F15
def test_sigkill_of_a_worker_and_then_sigterm(
    ray_cluster: str, calm: dict, groups: Groups, run_command: Callable[..., Any], tmp_path: Path
) -> None:  # type: ignore[type-arg]
    """One run loses a worker (F1), goes on and is stopped: every run of the suite sees Ray start a group again. What is left a group without Ray trains, to the bit."""
    experiment = write_experiment(tmp_path)
    kill = {
        "STUDYHALL_FAIL": "step.backward=kill@8,step.begin=sleep:1.5@11,step.begin=sleep:1.5@12,step.begin=sleep:1.5@13",
        "STUDYHALL_FAIL_RANK": "1",
        "STUDYHALL_FAIL_ONCE": str(tmp_path / "once"),
    }
    run = Run(experiment, "trainer.checkpoint.every_steps=4", address=ray_cluster, **kill)
    at = run.wait_for_step(10)["step"]
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75, run.said()
    assert "training failed" in run.said() and "going on from only 1/2: train_documents + test_documents, step " in run.said()
    saved = newest(run.run)
    assert saved[0] == 0 and at < saved[1] <= at + 20, f"no checkpoint of the step it was stopped at ({at}): {saved}"
    shutil.copytree(tmp_path / "runs", tmp_path / "alone" / "runs")
    again = run_command("trainer", str(write_experiment(tmp_path / "alone")), "--no-ray", "--no-exam")
    assert again.returncode == 0, again.stderr
    assert f"going on from only 1/2: train_documents + test_documents, step {saved[1] + 1} of 60" in again.stderr
    assert groups(experiment) == [0, 0], groups.error
    assert oracle(run.run) == calm


@pytest.mark.slow
@F15
def test_ctrl_c_saves_too(ray_cluster: str, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path)
    run = Run(experiment, "trainer.checkpoint.every_steps=1000", address=ray_cluster, STUDYHALL_FAIL="step.begin=sleep:0.2")
    run.wait_for_step(2)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.said()
    assert newest(run.run)[1] > 2 and "Traceback" not in run.said()


@pytest.mark.slow
@F5
def test_a_stopped_worker(ray_cluster: str, calm: dict, tmp_path: Path, recovered: Recovered) -> None:  # type: ignore[type-arg]
    run = Run(write_experiment(tmp_path), address=ray_cluster, STUDYHALL_FAIL="step.begin=sleep:0.1")
    run.wait_for_step(15)
    os.kill(run.beats()[1]["pid"], signal.SIGSTOP)
    assert run.wait() == 0, run.said()
    assert "killed for a restart" in run.said() and "rank" in run.said()
    stacks = [path.read_text() for path in sorted((run.run / "logs").glob("stacks-*.txt"))]
    assert len(stacks) == 2 and all("run_stage" in text for text in stacks), "both ranks must show where they stood"
    assert oracle(run.run) == calm
    recovered(longest_gap(run.run))


@pytest.mark.slow
@F4
def test_the_driver_dies(calm: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """With a Ray of its own: its processes end with it, and the same command goes on."""
    experiment = write_experiment(tmp_path)
    run = Run(experiment, STUDYHALL_FAIL="step.begin=sleep:0.1")
    run.wait_for_step(25)
    workers = [beat["pid"] for beat in run.beats()]
    os.kill(run.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (alive := [pid for pid in workers if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not alive, "training processes outlived their driver"
    run.process.wait(timeout=10)
    assert newest(run.run)[1] >= 10
    again = Run(experiment)
    assert again.wait() == 0, again.said()
    assert "going on from" in again.said()
    assert oracle(run.run) == calm


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
@F14
def test_ray_data_task_killed_in_a_small_object_store(calm: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """Three tasks die in the midst of their rows: the first of some process, and the second of two others (kill, retry, …)."""
    run = Run(
        write_experiment(tmp_path), STUDYHALL_OBJECT_STORE_MB="80",
        STUDYHALL_FAIL="stream.rows=kill@1,stream.rows=kill@2,stream.rows=kill@3", STUDYHALL_FAIL_ONCE=str(tmp_path / "once"),
    )  # fmt: skip
    assert run.wait() == 0, run.said()
    killed = sorted(path.name for path in tmp_path.glob("once.*"))
    assert len(killed) >= 2, f"too few tasks were killed: {killed}"
    assert "training failed" not in run.said(), "Ray Data tries a task again without the group noticing"
    assert oracle(run.run) == calm


@pytest.fixture
def nodes() -> Iterator[Any]:
    """Four nodes with one CPU each, so that two workers are on two of them, and one can be missed."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        for _ in range(3):
            cluster.add_node(**small)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
@F1
def test_two_nodes_whose_storage_is_late(calm: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    """Every process of driver and nodes sees others' files two seconds late; a worker is killed as well. Nothing is lost, and nothing is another's."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{late_storage.sitecustomize(tmp_path, 2.0)}{os.pathsep}{ROOT}")
    monkeypatch.setenv("STUDYHALL_LATE_S", "30")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        env = {"STUDYHALL_FAIL": "step.begin=kill@45", "STUDYHALL_FAIL_RANK": "1", "STUDYHALL_FAIL_ONCE": str(tmp_path / "once")}
        run = Run(write_experiment(tmp_path), "trainer.checkpoint.every_steps=20", address=cluster.address, **env)
        assert run.wait(400) == 0, run.said()
    finally:
        cluster.shutdown()
    assert "step 41 of 60" in run.said() and oracle(run.run) == calm


def _elastic(cluster: Any, folder: Path) -> Run:
    return Run(
        write_experiment(folder), "trainer.num_workers=[1,2]", address=cluster.address,
        STUDYHALL_FAIL="step.begin=sleep:0.3", PYTHONPATH=str(ROOT),
    )  # fmt: skip


def _one_of(cluster: Any, run: Run) -> Any:
    """A node of the group that is not the head; the two workers are on two nodes."""
    used = [beat["node"] for beat in run.beats()]
    assert len(set(used)) == 2, "the two workers were not on two nodes"
    return next(node for node in cluster.worker_nodes if node.node_id in used)


def _same_but_for_rounding(run: Path, calm: dict[str, Any]) -> None:
    """The same items in every step; with another number of workers sums are rounded otherwise."""
    for key, (steps, _, plan, totals) in oracle(run).items():
        theirs, _, their_plan, their_totals = calm[key]
        assert (plan, totals) == (their_plan, their_totals)
        assert [(s, tokens) for s, _, _, tokens in steps] == [(s, tokens) for s, _, _, tokens in theirs]


@pytest.mark.slow
@pytest.mark.timeout(600)
@F3
def test_a_node_dies(nodes: Any, calm: dict, tmp_path: Path, recovered: Recovered) -> None:  # type: ignore[type-arg]
    """Removed hard. [1, 2] goes on with the nodes that are left: two workers, or one where Ray has noticed already that there is less room."""
    run = _elastic(nodes, tmp_path)
    run.wait_for_step(15, limit_s=200)
    nodes.remove_node(_one_of(nodes, run), allow_graceful=False)
    assert run.wait(200) == 0, run.said()
    assert "2 workers of 1 to 2" in run.said() and "going on from" in run.said()
    _same_but_for_rounding(run.run, calm)
    recovered(longest_gap(run.run))


@pytest.mark.slow
@pytest.mark.timeout(600)
@F15
def test_a_preemption_notice(nodes: Any, calm: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """As a cloud's notice reaches Ray: the node is drained, with a minute left. Nothing is lost, for it is saved at once."""
    run = _elastic(nodes, tmp_path)
    run.wait_for_step(15, limit_s=200)
    drain = ["drain-node", "--address", nodes.address, "--node-id", _one_of(nodes, run).node_id, "--deadline-remaining-seconds", "60"]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a better offer"]
    ray = str(Path(sys.executable).parent / "ray")
    subprocess.run([ray, *drain, *why], check=True, timeout=60, capture_output=True)
    assert run.wait(200) == 0, run.said()
    assert "a node of this group is to be taken away" in run.said() and "training failed" not in run.said()
    _same_but_for_rounding(run.run, calm)


@pytest.mark.slow
@F13
def test_a_data_file_changes_between_kill_and_resume(run_command: Callable[..., Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 12), ("test", 4)):
        rows = [{"id": f"{split}{n}", "text": f"Document {n} of {split} says that the answer is {n}."} for n in range(count)]
        (data / f"{split}_documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = [
            {"id": f"{split}q{n}", "doc_id": f"{split}{n}", "question": f"What says {split} {n}?", "answers": [str(n)]}
            for n in range(count)
        ]
        (data / f"{split}_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    sources = [{"path": f"{s}_{k}.jsonl", "split": s, "holds": k} for s in ("train", "test") for k in ("documents", "questions")]
    stage = {"mix": {"train_documents": 1}, "epochs": 30, "batch_items": 12, "rate": 1e-3}
    experiment = tmp_path / "changed.yaml"
    content = {
        "name": "changed", "runs": str(tmp_path / "runs"), "data": {"root": str(data), "sources": sources},
        "model": {"tiny": {"hidden_size": 32, "layers": 1}}, "arms": {"only": {"stages": [stage]}},
        "trainer": {"checkpoint": {"every_steps": 5}},
    }  # fmt: skip
    experiment.write_text(json.dumps(content))  # JSON is YAML
    killed = run_command("trainer", str(experiment), "--no-ray", "--no-exam", env={"STUDYHALL_FAIL": "step.begin=kill@12"})
    assert killed.returncode == -signal.SIGKILL
    (stage_folder,) = (tmp_path / "runs/changed/stages").iterdir()
    assert checkpoints(stage_folder)[0].step in (5, 10)  # the one of step 10 is written behind training
    file = data / "train_documents.jsonl"
    original = file.read_text()
    file.write_text(original.replace("Document 3 ", "Document three "))
    refused = run_command("trainer", str(experiment), "--no-ray", "--no-exam")
    assert refused.returncode == 2 and str(file) in refused.stderr and "changed" in refused.stderr, refused.stderr
    file.write_text(original)
    assert run_command("trainer", str(experiment), "--no-ray", "--no-exam").returncode == 0
    file.write_text(original.replace("Document 3 ", "Document three "))  # nothing is unfinished now: another experiment begins
    assert run_command("trainer", str(experiment), "--no-ray", "--no-exam").returncode == 0


@pytest.mark.slow
@F11
def test_events_are_shown(ray_cluster: str, tmp_path: Path) -> None:
    run = Run(write_experiment(tmp_path), address=ray_cluster, STUDYHALL_FAIL="step.loss=nan@7", STUDYHALL_FAIL_RANK="0")
    assert run.wait() == 0, run.said()
    assert "the step was skipped on all ranks (only 1/2: train_documents + test_documents; its 12 items: " in run.said().replace("\n", " ")
    assert "skipped" in events_of(run.run)

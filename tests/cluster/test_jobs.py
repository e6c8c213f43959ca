"""Several nodes for real: a head and two nodes, a job server that wants a token, jobs from a clean copy of the checkout.

Nodes are groups of processes on one machine with ports of their own; a node is lost by SIGKILL of its group.
"""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.jobs import follow, job_environment, last_line, status_lines
from console import UserError
from tests.cluster.conftest import TOKEN
from tests.conftest import ROOT
from tests.faults.conftest import oracle, write_experiment
from tests.faults.promises import F3
from tests.helpers.groups import Groups
from tests.helpers.machines import BIN, Machines, free_port

pytestmark = pytest.mark.timeout(1200)
RAY, PYTHON = str(BIN / "ray"), sys.executable


@pytest.fixture(scope="module")
def undisturbed(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two processes without Ray make of the same experiment: losses, weights, plans."""
    folder = tmp_path_factory.mktemp("local")
    assert groups(write_experiment(folder), limit_s=200) == [0, 0]
    return oracle(folder / "runs" / "small")


def http(machines: Machines) -> str:
    return f"http://{machines.dashboard}"


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def last(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


# ── jobs ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_plain_ray_job_submit_trains_the_same(machines: Machines, clone: Path, undisturbed: Any, tmp_path: Path) -> None:
    """`ray job submit --working-dir . -- python -m trainer …` from a clean copy, to nodes that have the dependencies and nothing of ours."""
    experiment = write_experiment(tmp_path).rename(clone / "experiments" / "small.yaml")
    command = [RAY, "job", "submit", "--address", http(machines), "--working-dir", ".", "--"]
    train = ["python", "-m", "trainer", str(experiment.relative_to(clone)), "--no-exam"]
    done = machines.run(*command, *train, cwd=clone, limit_s=400)
    assert done.returncode == 0, said(done)[-3000:]
    assert "succeeded" in said(done)
    theirs = oracle(tmp_path / "runs" / "small")
    assert theirs == undisturbed  # to the bit: two ranks there, two here


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_as_a_job(machines: Machines, clone: Path, tmp_path: Path) -> None:
    """Every loss of every stage as in the run of `make demo` here (which is trained first if it is not there): half an hour, or half of that."""
    local = subprocess.run(
        [PYTHON, "-m", "trainer", "experiments/bios_cpu.yaml", "--no-exam"], cwd=ROOT, text=True, capture_output=True, timeout=1700
    )
    assert local.returncode == 0, said(local)[-3000:]
    command = [RAY, "job", "submit", "--address", http(machines), "--working-dir", ".", "--"]
    train = ["python", "-m", "trainer", "experiments/bios_cpu.yaml", f"runs={tmp_path}", "--no-exam"]
    done = machines.run(*command, *train, cwd=clone, limit_s=1700)
    assert done.returncode == 0, said(done)[-3000:]
    ours, theirs = oracle(ROOT / "runs" / "bios-cpu", every=10), oracle(tmp_path / "bios-cpu", every=10)
    used = {key for arm in json.loads((tmp_path / "bios-cpu" / "arms.json").read_text())["arms"].values() for key in arm["stages"]}
    assert len(used) >= 5 and theirs.keys() == used
    assert {key: ours[key] for key in used} == theirs


@pytest.mark.slow
@F3
def test_submit_follows_and_a_lost_node_is_survived(machines: Machines, clone: Path, undisturbed: Any, tmp_path: Path) -> None:
    """Three workers over both nodes, preflight first; one node is lost while they train; the rest goes on, and nothing is skipped."""
    experiment = write_experiment(tmp_path).rename(clone / "experiments" / "lost.yaml")
    words = [str(experiment.relative_to(clone)), "trainer.num_workers=[1,3]", "--no-exam", "--name", "lost", "--address", http(machines)]
    log = tmp_path / "log"
    with log.open("w") as file:
        looking = subprocess.Popen(
            [PYTHON, "-m", "cluster", "submit", *words, "--env", "STUDYHALL_FAIL=step.begin=sleep:0.2"],
            cwd=clone, env=machines.environment, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        run = tmp_path / "runs" / "small"
        nodes = wait_for_step(run, 12, looking, log)
        assert len(nodes) >= 2, "the workers were all on one node"
        machines.lose("two")
        assert looking.wait(450) == 0, log.read_text()[-3000:]
    finally:
        looking.kill()
        looking.wait(10)
    told = log.read_text()
    assert (
        "all-reduce over 3 rank(s)" in told
        and "ready: " in told
        and "3 workers of 1 to 3" in told
        and "training failed" in told
        and "1 workers of 1 to 3" in told
    )
    for key, (steps, _, plan, totals) in oracle(run).items():
        theirs, _, their_plan, their_totals = undisturbed[key]
        assert (plan, totals) == (their_plan, their_totals)
        for ours, other in zip(steps, theirs, strict=True):
            assert (ours[0], ours[3]) == (other[0], other[3])  # the same steps, the same tokens
    machines.add("two", 2)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[Any], log: Path, limit_s: float = 600) -> set[str]:
    """Until rank 0 has reported it; the nodes that ranks are on."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if json.loads((run / "progress.json").read_text())["step"] >= step:
                return {json.loads(path.read_text())["node"] for path in (run / "heartbeats").glob("*.json")}
        except (OSError, ValueError):
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.slow
def test_stop_saves_and_status_tells(machines: Machines, clone: Path, tmp_path: Path) -> None:
    """A job that nobody follows goes on; stop makes it save; what it did is there."""
    experiment = write_experiment(tmp_path).rename(clone / "experiments" / "stopped.yaml")
    words = [str(experiment.relative_to(clone)), "trainer.num_workers=1", "--no-exam", "--no-preflight", "--detach", "--name", "stopped"]
    address = ["--address", http(machines)]
    slow = ["--env", "STUDYHALL_FAIL=step.begin=sleep:1"]
    done = machines.run(PYTHON, "-m", "cluster", "submit", *words, *address, *slow, cwd=clone)
    assert done.returncode == 0 and done.stdout.strip() == "stopped", said(done)
    run = tmp_path / "runs" / "small"
    deadline = time.monotonic() + 200
    while not (run / "progress.json").exists():
        status = machines.run(PYTHON, "-m", "cluster", "status", "stopped", *address)
        assert "RUNNING" in status.stdout or "PENDING" in status.stdout, said(status)
        assert time.monotonic() < deadline
        time.sleep(1)
    done = machines.run(PYTHON, "-m", "cluster", "stop", "stopped", *address)
    assert done.returncode == 0 and "STOPPED" in done.stderr, said(done)
    assert list(run.glob("stages/*/checkpoints/step-*/manifest.json")), "it was killed before it had saved"
    listed = machines.run(PYTHON, "-m", "cluster", "status", *address)
    assert re.search(r"^stopped +STOPPED", listed.stdout, re.MULTILINE), said(listed)
    shown = machines.run(PYTHON, "-m", "cluster", "logs", "stopped", "--no-follow", *address)
    assert "saving and stopping" in shown.stdout and TOKEN not in said(shown)


# ── what goes wrong, as a new user meets it ────────────────────────────────────────────────────────────────────────────────────


Asked = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def asked(machines: Machines, run_command: Asked) -> Asked:
    """python -m room …, by a user who has the token."""
    return lambda *words, **env: run_command(*words, env={**machines.environment, **env})


def test_no_cluster(machines: Machines, asked: Asked) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for command in (["status"], ["logs", "x"], ["submit", "experiments/bios_cpu.yaml", "runs=/tmp/nothing"]):
        done = asked("cluster", *command, "--address", nobody)
        assert done.returncode == 1 and last(done).startswith(f"error: {nobody}: no Ray job server answers there"), said(done)
    done = asked("cluster", "preflight", "experiments/bios_cpu.yaml", "runs=/tmp/nothing", RAY_ADDRESS=nobody[7:])
    assert done.returncode == 2 and "WRONG cluster: RAY_ADDRESS=" in done.stdout, said(done)


def test_a_wrong_token(machines: Machines, asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = asked("cluster", "status", "--address", http(machines), **wrong)
    assert done.returncode == 1 and "does not take this token" in last(done), said(done)
    done = asked("cluster", "preflight", "experiments/bios_cpu.yaml", "runs=/tmp/nothing", RAY_ADDRESS=machines.gcs, **wrong)
    assert done.returncode == 2 and "WRONG cluster: " in done.stdout and "token" in done.stdout, said(done)


ANOTHER = "import ray; ray.__version__ = '2.59.9'; from cluster.__main__ import main; from console import door; door(main)"


def test_another_version(machines: Machines) -> None:
    """A head of another Ray cannot be installed here: ours is told that it is one."""
    done = machines.run(PYTHON, "-c", ANOTHER, "status", "--address", http(machines))
    assert done.returncode == 1, said(done)
    assert "runs Ray 2.60.0 and this environment 2.59.9: install the same requirements lock on both" in last(done)


def test_too_few_cpus_and_gpus(machines: Machines, asked: Asked, tmp_path: Path) -> None:
    words = ["experiments/bios_cpu.yaml", f"runs={tmp_path}", "trainer.num_workers=20"]
    done = asked("cluster", "preflight", *words, RAY_ADDRESS=machines.gcs)
    assert done.returncode == 2, said(done)
    assert (
        "WRONG CPUs: 26 needed (20 workers, 5 for their streams, 1 beside), the cluster has 5; set trainer.num_workers lower" in done.stdout
    )
    assert "collectives: not tried" in done.stdout
    done = asked("trainer", *words, "--no-exam", RAY_ADDRESS=machines.gcs)
    assert done.returncode == 1 and last(done).startswith("error: the cluster has 5 CPUs and this needs 26"), said(done)


def test_a_disk_and_a_memory_that_are_too_small(machines: Machines, asked: Asked, tmp_path: Path) -> None:
    """70B on this machine: what is missing, in numbers, before anything is fetched; and a model that nobody can reach."""
    words = ["experiments/wiki2023_llama2_70b.yaml", f"runs={tmp_path}", "trainer.num_workers=1"]
    done = asked("cluster", "preflight", *words, RAY_ADDRESS=machines.gcs, HF_HUB_OFFLINE="1")
    assert done.returncode == 2, said(done)
    assert re.search(r"^WRONG storage: .*GiB free, the run needs .*: [\d,.]+ GiB missing", done.stdout, re.MULTILINE), said(done)
    assert re.search(r"^WRONG memory: .*host memory a node.*GiB missing", done.stdout, re.MULTILINE), said(done)
    assert re.search(r"^WRONG model: meta-llama/Llama-2-70b-hf is neither a folder nor reachable", done.stdout, re.MULTILINE), said(done)


def test_relative_runs_and_files_outside(machines: Machines, asked: Asked, tmp_path: Path) -> None:
    done = asked("cluster", "submit", "experiments/bios_cpu.yaml", "--address", http(machines))
    assert done.returncode == 2 and "runs: runs would lie in the job's temporary copy" in last(done)
    outside = write_experiment(tmp_path)
    done = asked("cluster", "submit", str(outside), "--address", http(machines))
    assert done.returncode == 2 and "outside the checkout" in last(done)
    done = asked("cluster", "logs", "nobody-knows", "--address", http(machines))
    assert done.returncode == 2 and "knows no such job" in last(done)


# ── pure ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_secrets_do_not_travel() -> None:
    with pytest.raises(UserError, match=r"--env HF_TOKEN: looks like a secret.*HF_TOKEN_PATH"):
        job_environment(["HF_TOKEN=hf_abcdefghij"])
    with pytest.raises(UserError, match="expected NAME=VALUE"):
        job_environment(["nonsense"])
    found = job_environment(["HF_TOKEN_PATH=/run/secrets/hf", "NCCL_DEBUG=INFO"])
    assert found["HF_TOKEN_PATH"] == "/run/secrets/hf" and found["NCCL_DEBUG"] == "INFO"
    assert not any(value == os.environ.get("PATH") for value in found.values()), "our own environment stays here"


def test_the_line_that_says_what_happened() -> None:
    assert last_line("Traceback …\n  File x\nValueError: no\n\n") == "ValueError: no"
    assert last_line("") == "no message"


def test_status_without_jobs() -> None:
    assert status_lines([], 0.0) == ["no jobs"]


def test_the_checkout_is_small() -> None:
    """What Ray would send: far below its limit, so that a submit takes seconds."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sum((ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file()) < 20 * 2**20


class Breaking:
    """A job server whose connection breaks once, after two lines."""

    def __init__(self) -> None:
        self.calls = 0

    async def tail_job_logs(self, job: str) -> Any:
        self.calls += 1
        for number in (1, 2, 3):
            if number == 3 and self.calls == 1:
                raise RuntimeError("closed")
            yield f"line {number}\n"

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status="SUCCEEDED", driver_exit_code=0)


def test_a_lost_connection_repeats_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs._RECONNECT_S", [0])
    written = io.StringIO()
    monkeypatch.setattr("cluster.jobs.out", SimpleNamespace(file=written))
    assert follow(Breaking(), "x") == 0 and written.getvalue() == "line 1\nline 2\nline 3\n"


def test_a_reader_that_goes_is_no_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cluster logs ID | head` tried for ten minutes."""

    def gone(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("cluster.jobs.out", SimpleNamespace(file=SimpleNamespace(write=gone, flush=lambda: None)))
    with pytest.raises(BrokenPipeError):
        follow(Breaking(), "x")

"""A signal while Ray comes up: one line, the documented exit code, nothing left behind. Real Ray."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

OURS = """
import sys, time
from console import door, say
from cluster.connect import Connecting, connected
def main(_):
    if sys.argv[1] == "waiting":
        import ray
        with connected(cpus_needed=1):
            slow = ray.remote(lambda: time.sleep(60)).remote()
            say("coming")
            ray.get(slow)
    say("coming")
    if sys.argv[1] == "in a thread":
        with Connecting(1) as ray_comes:
            ray_comes.begin()
            time.sleep(60)
    with connected(cpus_needed=1):
        time.sleep(60)
door(main)
"""
PLAIN = """
import ray, sys, time
from console import door, say
def main(_):
    say("coming")
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
    time.sleep(60)
door(main)
"""
END = "what is committed stays, and the same command goes on from there"


def interrupted(script: str, how: str, number: signal.Signals, after_s: float) -> tuple[int, str]:
    """(exit code, what was said last); the whole session is looked through for what is left."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, how], cwd=ROOT, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )  # fmt: skip
    assert process.stderr is not None
    while process.stderr.readline() != "coming\n":
        assert process.poll() is None
    time.sleep(after_s)
    process.send_signal(number)
    sent = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - sent < 40, "it waited for what was under way"
    for _ in range(50):
        left = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True, timeout=10).stdout.split()
        if not left:
            break
        time.sleep(0.1)
    assert not left
    return process.returncode, (said.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("how", "number", "after_s", "code"),
    [
        ("here", signal.SIGTERM, 1.5, 75),
        ("waiting", signal.SIGTERM, 1.5, 75),  # an answer that Ray waits for: an exam's
        pytest.param("here", signal.SIGINT, 2.5, 130, marks=pytest.mark.slow),
        pytest.param("in a thread", signal.SIGTERM, 15.0, 75, marks=pytest.mark.slow),  # Ray is there, and its driver is at something else
    ],
)
def test_one_line_and_nothing_left(how: str, number: signal.Signals, after_s: float, code: int) -> None:
    ended, said = interrupted(OURS, how, number, after_s)
    assert (ended, said.split("; ", 1)[-1]) == (code, END)


@pytest.mark.slow
def test_the_twin_ray_itself_ends_otherwise() -> None:
    ended, said = interrupted(PLAIN, "", signal.SIGTERM, 1.5)
    assert ended != 75 and END not in said

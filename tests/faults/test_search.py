"""A search whose driver is killed, and whose trials raise: real Ray Tune, DeepSpeed and vLLM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiment import load_experiment
from tests.conftest import ROOT
from tests.faults.promises import F16
from trainer.config import TinyModel
from trainer.network.model import make_tiny_model

# A rate that learns and one that cannot; the driver is killed when a trial has ended.
EXPERIMENT = """\
name: small-search
runs: {runs}
data: {{bios: {{replay_people: 8, train_people: 8, test_people: 8}}}}
model: {{name: {model}}}
base:
  - {{mix: {{replay_documents: 1, replay_questions: 1}}, epochs: 2, batch_items: 24, rate: 1.0e-3}}
arms:
  only:
    stages:
      - {{mix: {{train_documents: 1, train_questions: 1}}, epochs: 2, batch_items: 24, rate: 1.0e-3}}
      - {{mix: {{test_documents: 1}}, epochs: 20, batch_items: 8, rate: 1.0e-3}}
trainer: {{num_workers: 1, row_tokens: 1024, max_failures: 0}}
exam: {{validation_share: 0.5, answer_tokens: 4, resamples: 100, modes: [closed], base_modes: [closed]}}
search:
  algorithm: grid
  max_concurrent: 1
  guard: {{set: replay, most_points: 100}}
  stopping: {{scheduler: none, first_rung: 0.5}}
  space:
    arms.only.stages.1.rate: {{grid: [1.0e-3, 1.0e+20]}}
    arms.only.stages.1.epochs: {{grid: [20, 24]}}
"""


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in (folder / "search" / "trials").glob("*.json"):
        row = json.loads(path.read_text())
        found[row["id"]] = row
    return found


@pytest.mark.slow
@F16
@pytest.mark.timeout(1300)
def test_killed_driver_and_raising_trials(ray_cluster: str, tmp_path: Path) -> None:
    experiment = tmp_path / "search.yaml"
    make_tiny_model(tmp_path / "model", TinyModel(hidden_size=32, layers=1), ["Who is it? The answer is x."] * 8, 0)
    relative = os.path.relpath(
        tmp_path / "model", ROOT
    )  # means the same to a trial as to the driver, whatever folder Ray Tune has for trials
    experiment.write_text(EXPERIMENT.format(runs=tmp_path / "runs", model=relative))
    folder = tmp_path / "runs" / "small-search"
    command = [sys.executable, "-m", "tune", str(experiment)]
    env = {**os.environ, "RAY_ADDRESS": ray_cluster, "DS_ACCELERATOR": "cpu"}
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(
            command, cwd=ROOT, env={**env, "STUDYHALL_FAIL": "step.begin=sleep:0.05"}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 420
        while time.monotonic() < deadline:
            states = [row["state"] for row in rows_of(folder).values()]
            if {"done", "failed"} & set(states) and "running" in states:
                break
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.1)
        else:
            raise AssertionError((tmp_path / "first.log").read_text())
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(timeout=10)
    ended = {
        path: path.read_bytes() for path in (folder / "search/trials").glob("*.json") if json.loads(path.read_bytes())["state"] != "running"
    }
    assert ended and len(ended) < 4

    again = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=420)
    assert again.returncode == 0, again.stderr + (folder / "logs/search.log").read_text()[-3000:]
    assert f"4 trials: {len(ended)} have ended" in again.stderr
    assert {path: path.read_bytes() for path in ended} == ended, "a trial that had ended was run again"
    rows = rows_of(folder)
    assert len(rows) == 4
    for row in rows.values():
        if row["values"]["arms.only.stages.1.rate"] > 1:
            assert row["state"] == "failed" and "lower the rate" in row["reason"]
        else:
            assert row["state"] == "done" and [rung["share"] for rung in row["rungs"]] == [0.5, 1.0]
    assert "lower the rate" in " ".join(again.stdout.split())  # the table folds it

    shared = [manifest for path in (folder / "stages").glob("*/manifest.json") if (manifest := json.loads(path.read_text()))]
    steps = sorted(manifest["job"]["num_steps"] for manifest in shared)
    assert len(steps) == 3, "the base, the stage that all share, and the winner's: nothing else is kept"
    report = json.loads((folder / "search/report.json").read_text())
    assert (
        report["winner"]["id"] == report["ranking"][0]
        and report["winner"]["test"]["test"]["n"] == 20
        and report["questions"] == {"validation": 20, "test": 20}
    )
    assert report["base_test"] and report["surface"]["by"] == "arms.only.stages.1.rate"
    assert "<svg" in (folder / "search/report.html").read_text() and "# small-search: search" in (folder / "search/report.md").read_text()
    winner = load_experiment(folder / "search/winner.yaml")
    values = report["winner"]["values"]
    assert winner.search is None and winner.stages("only")[-1].rate == values["arms.only.stages.1.rate"]
    assert yaml.safe_load((folder / "search/winner.yaml").read_text())["exam"]["validation_share"] == 0.5

    # Never paused, trained by the trainer's own command: the same stage, to the bit, with as many threads as Ray gives a trial.
    settings = [f"runs={tmp_path / 'again'}", "--no-ray", "--no-exam"]
    trained = subprocess.run(
        [sys.executable, "-m", "trainer", str(folder / "search/winner.yaml"), *settings],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert trained.returncode == 0, trained.stderr
    key = rows[report["winner"]["id"]]["stages"][-1]
    ours, theirs = (json.loads((run / "stages" / key / "manifest.json").read_text()) for run in (folder, tmp_path / "again/small-search"))
    assert ours["weights_sha256"] == theirs["weights_sha256"]

    third = subprocess.run([*command, "--json"], cwd=ROOT, env=env, text=True, capture_output=True, timeout=120)
    assert third.returncode == 0 and "nothing to do" in third.stderr, third.stderr

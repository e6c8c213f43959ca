"""What a newcomer does, in three commands: a folder → questions → a report → a model on everything. Real Ray, DeepSpeed and vLLM."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiment import load_experiment
from tests.conftest import ROOT
from tests.data.build.service import KEY, serving
from tests.data.build.test_command import make_folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_commands(tmp_path: Path, run_command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    folder, out, runs = make_folder(tmp_path / "notes"), tmp_path / "built", tmp_path / "runs"
    with serving() as service:
        build = ["build", str(folder), "--out", str(out), "--endpoint", service.url, "--model", "by-rule"]
        made = run_command("data", *build, env={"STUDYHALL_API_KEY": KEY})
    assert made.returncode == 0, made.stderr[-2000:]
    experiment = out / "experiment.yaml"
    assert f"python -m trainer {experiment}" in made.stderr
    trained = run_command("trainer", str(experiment), f"runs={runs}", timeout_s=500)
    assert trained.returncode == 0, trained.stderr[-3000:]
    report = json.loads((runs / "built" / "report.json").read_text())
    assert set(report["arms"]) == {"base", "cpt", "standard", "pit"} and all(arm["status"] == "scored" for arm in report["arms"].values())
    assert "retrieval" in report["arms"]["pit"]["modes"] and (runs / "built" / "report.html").stat().st_size > 50_000

    final = run_command("trainer", str(experiment), f"runs={runs}", "--final", "pit", timeout_s=300)
    assert final.returncode == 0, final.stderr[-3000:]
    arms = json.loads((runs / "built-final" / "arms.json").read_text())["arms"]
    assert (runs / "built-final" / arms["pit"]["hf"] / "config.json").exists() and not (runs / "built-final" / "report.json").exists()
    assert f"python -m evaluation ask {runs / 'built-final' / arms['pit']['hf']}" in final.stderr
    unknown = subprocess.run(
        [sys.executable, "-m", "trainer", str(experiment), f"runs={runs}", "--final", "pitt"],
        cwd=ROOT, env=os.environ.copy(), text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert unknown.returncode == 2 and "no arm is called 'pitt'; did you mean pit?" in unknown.stderr
    sources = load_experiment(experiment).final("pit").data.sources
    assert {s.split for s in sources if s.holds == "questions"} == {"train"}
    assert {s.path for s in sources if s.split == "train" and s.holds == "documents"} == {
        f"{split}_documents.parquet" for split in ("train", "validation", "test")
    }

"""python -m tune refuses what cannot be, in one line, before anything starts; and plans without training."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from console import RunError
from tests.conftest import ROOT
from tests.helpers.refusals import refusal
from tests.tune.test_space import GOOD
from trainer.config import TrainerConfig
from trainer.watch.guard import Guard
from tune.__main__ import main


def refused(tmp_path: Path, text: str) -> str:
    (tmp_path / "x.yaml").write_text(text)
    said = refusal(lambda: main([str(tmp_path / "x.yaml"), f"runs={tmp_path / 'runs'}"]))
    assert not (tmp_path / "runs/x/stages").exists() and not (tmp_path / "runs/x/search/trials").exists()
    return said.removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        (GOOD[GOOD.index("search:") :], "", "x.yaml:1: search: is missing"),
        ("exam: {validation_share: 0.5}\n", "", "x.yaml:10: search: exam.validation_share: is missing"),
        ("  trials: 4", "  trials: 4\n  arm: pat", "x.yaml:13: search.arm: no arm is called 'pat'; there are pit"),
        ("  trials: 4", "  trials: 4\n  metric: choices", "x.yaml:13: search.metric: choices: the data hold no multiple-choice questions"),
        (
            "  trials: 4",
            "  trials: 4\n  guard: {set: retention, most_points: 3}",
            "x.yaml:13: search.guard: retention: needs exam.retention",
        ),
        ("validation_share: 0.5", "validation_share: 0.001", "exam.validation_share: 0.001 of 100 documents"),
        ("  trials: 4", "  trials: 4\n  gpus_per_trial: 64", "x.yaml:13: search.gpus_per_trial: 64 is more than the "),
    ],
)
def test_refused_before_anything_starts(tmp_path: Path, wrong: str, right: str, message: str) -> None:
    assert wrong in GOOD
    said = refused(tmp_path, GOOD.replace(wrong, right))
    assert message in said and said.startswith(message.partition(" ")[0] if message.startswith("x.yaml") else "x.yaml:10: "), said


def test_a_folder_with_another_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs/x/search").mkdir(parents=True)
    (tmp_path / "runs/x/search/search.json").write_text(json.dumps({"metric": "recall"}))
    assert "holds a search that differs in arm, experiment, metric, records" in refused(tmp_path, GOOD + "  gpus_per_trial: 0\n")


def test_bad_input_is_one_line_and_exit_code_2(run_command) -> None:  # type: ignore[no-untyped-def]
    done = run_command("tune", "experiments/bios_cpu.yaml")
    assert (
        done.returncode == 2
        and done.stderr
        == "error: experiments/bios_cpu.yaml:1: search: is missing: the section says which values are searched (docs/search.md)\n"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*_search.yaml")), ids=lambda p: p.stem)
def test_every_search_dry_runs_without_data_gpu_or_hub(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([str(path), "--dry-run", "--gpus", "8xA100-80G", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    least = 4 if path.stem == "wiki2023_smollm2_search" else 16  # two cores bear no more of the real model
    assert report["trials"] == report["planned"] == len(report["each"]) >= least
    assert 0 < report["steps"] <= report["steps_alone"] and report["plan"]["in_words"]
    assert main([str(path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert all(trial["id"] in text for trial in report["each"]) and f"{report['steps_alone']:,} steps" in text


def test_what_trials_share_is_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(ROOT / "experiments/bios_cpu_search.yaml"), "--dry-run", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [(stage["steps"], stage["trials"]) for stage in report["stages"][:2]] == [(600, 16), (450, 16)]
    assert report["steps"] == 1050 + 4 * (15 + 30 + 60 + 90) and report["steps_alone"] == 16 * 1050 + 4 * 195


# ── what a search asks of the trainer's loop ──────────────────────────────────────────────────────────────────────────────────────────


def guard(**more: Any) -> Guard:
    beat: Any = SimpleNamespace(enter=lambda *a: None, tell=lambda *a, **k: None, stop_requested=False)
    config = TrainerConfig.model_validate({"checkpoint": {"every_minutes": None}, "watch": {"replicas_every_steps": 0}})
    return Guard(SimpleNamespace(module=None), None, beat, config, "key", 0, **more)  # type: ignore[arg-type]


def test_a_stage_pauses_at_its_rung() -> None:
    paused = guard(pause_after=7)
    assert [step for step in range(10) if paused.wishes(step)[1]] == [6]
    assert not any(guard().wishes(step)[1] for step in range(10))


def test_an_exploding_loss_ends_the_trial_and_a_bad_batch_does_not() -> None:
    calm, wild = guard(explodes_at=3.0), guard(explodes_at=3.0)
    for step, loss in enumerate([5.0] * 6 + [90.0] + [5.0] * 6):
        calm.finished(step, 0.1, loss, math.isfinite(loss))
    with pytest.raises(RunError, match=r"the loss explodes: 20 at step \d+, 4\.0 times that of the first steps; lower the rate"):
        for step, loss in enumerate([5.0] * 6 + [20.0] * 6):
            wild.finished(step, 0.1, loss, True)
    off = guard()
    for step, loss in enumerate([5.0] * 6 + [20.0] * 6):
        off.finished(step, 0.1, loss, True)

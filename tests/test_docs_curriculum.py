"""A curriculum of one's own from docs/curricula.md alone: it plans and really trains; impossible ones are refused before any worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import console
from cluster.connect import Connecting
from experiment_yaml import ExperimentError, line_of
from tests.conftest import ROOT
from trainer.__main__ import main


@pytest.fixture(autouse=True)
def consoles_as_they_were() -> Iterator[None]:
    """`main` in this process ties the consoles to the streams of one test."""
    before = console.out._file, console.err._file
    yield
    console.out._file, console.err._file = before


DOCS = (ROOT / "docs" / "curricula.md").read_text()
EXAMPLE = DOCS.split("```yaml\n")[1].split("```")[0]


def test_the_example_of_the_docs_trains(tmp_path: Path, run_command: Any) -> None:
    (tmp_path / "my.yaml").write_text(EXAMPLE)
    assert len(EXAMPLE.splitlines()) < 20
    planned = run_command("data", "plan", str(tmp_path / "my.yaml"), "--json")
    stages = json.loads(planned.stdout)["arms"]["mine"]
    done = run_command("trainer", str(tmp_path / "my.yaml"), f"runs={tmp_path}", "--no-ray", "--no-exam")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "my-curriculum"
    arms = json.loads((folder / "arms.json").read_text())["arms"]
    assert arms["mine"]["steps"] == sum(stage["steps"] for stage in stages) == 95
    assert arms["mine"]["template"] == "pit"
    for key, stage in zip(arms["mine"]["stages"], stages, strict=True):
        metrics = [json.loads(line) for line in (folder / "stages" / key / "metrics.jsonl").read_text().splitlines()]
        assert metrics[-1]["step"] + 1 == stage["steps"] and metrics[-1]["loss"] < metrics[0]["loss"]


UNLINKED = """\
name: mine
data:
  sources:
    - {path: docs.jsonl, split: train, holds: documents}
    - {path: qa.jsonl, split: train, holds: questions}
    - {path: exam.jsonl, split: test, holds: questions}
model: {tiny: {}}
arms:
  mine:
    stages:
      - {mix: {train_documents: 1}, epochs: 1, batch_items: 8, rate: 1.0e-3}
      - mix: {train_questions: 1, train_documents: 1}
        epochs: 1
        batch_items: 8
        rate: 1.0e-3
"""


@pytest.fixture
def unlinked(tmp_path: Path) -> Path:
    """Documents and questions that know nothing of each other."""
    (tmp_path / "docs.jsonl").write_text("".join(f'{{"id": "{n}", "text": "Text {n}."}}\n' for n in range(4)))
    (tmp_path / "qa.jsonl").write_text("".join(f'{{"question": "What is {n}?", "answer": "{n}"}}\n' for n in range(4)))
    (tmp_path / "exam.jsonl").write_text('{"question": "What is nine?", "answer": "nine"}\n')
    (tmp_path / "mine.yaml").write_text(UNLINKED)
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("order: questions_first", "order questions_first needs every question linked to a document; 4 of 4 train_questions have none"),
        ("order: documents_grouped", "order documents_grouped needs every question linked"),
        ("order: by_level", "order by_level needs a level on every question; 4 of 4"),
        ("replay_share: 0.05", "replay_share draws replay documents, but the data hold none"),
        ("sample_replay_questions: 2", "sample_replay_questions asks for 2 replay questions, but the data hold 0"),
        ("sample_questions: 5", "sample_questions asks for 5 train questions, but the data hold 4"),
        ("best_share: {train_documents: 0.5}", "best_share of train_documents needs a quality on every one of them; 4 of 4 have none"),
        ("template: chat", "template chat: the model's tokenizer has no chat template; use template: pit or alpaca"),
        ("prefix: url", "prefix url: none of the 4 documents has a url"),
    ],
)
def test_what_the_data_or_the_model_cannot_give_is_refused_at_its_line(
    unlinked: Path, setting: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []
    monkeypatch.setattr(Connecting, "begin", lambda self: begun.append(True))  # nobody waits for Ray to come and go
    unlinked.write_text(UNLINKED.replace("        epochs: 1\n", f"        epochs: 1\n        {setting}\n"))
    folder = unlinked.parent
    with pytest.raises(ExperimentError) as refused:
        main([str(unlinked), f"data.root={folder}", f"runs={folder}", "--no-exam"])
    assert begun == [True] * (setting == "template: chat")  # which the tokenizer is asked for while Ray comes up
    assert str(refused.value).startswith(f"{unlinked}:12: arms.mine.stages.1: {reason}") and "\n" not in str(refused.value)
    assert not (folder / "mine" / "stages").exists() and not (folder / "mine" / "arms.json").exists()  # no worker had begun


def test_a_replay_of_an_empty_split_is_refused_at_its_line(unlinked: Path) -> None:
    unlinked.write_text(UNLINKED.replace("train_questions: 1, train_documents: 1", "replay_documents: 1"))
    with pytest.raises(
        ExperimentError, match=r"mine\.yaml:12: arms\.mine\.stages\.1: the stage mixes replay_documents, but the data hold none"
    ):
        main([str(unlinked), f"data.root={unlinked.parent}", f"runs={unlinked.parent}", "--no-exam"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("order: backwards", "order: input should be 'shuffled', 'sequential'"),
        ("steps: 5", "arms.mine.stages.1: give either epochs or steps"),
        ("templat: chat", "templat: unknown key; did you mean template?"),
        ("freeze_round: 1", "freeze_round chooses what freeze_share freezes, and that is nothing"),
        ("warmup_share: 2", "warmup_share: input should be less than 1"),
    ],
)
def test_what_means_nothing_is_refused_before_any_data_is_read(unlinked: Path, setting: str, reason: str) -> None:
    unlinked.write_text(UNLINKED.replace("        epochs: 1\n", f"        epochs: 1\n        {setting}\n"))
    with pytest.raises(ExperimentError) as refused:
        main([str(unlinked), "--no-exam"])
    place, _, told = str(refused.value).partition(": ")
    assert place.removeprefix(f"{unlinked}:") in ("12", "14") and reason in told


def test_the_possible_one_is_planned(unlinked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin: without the settings above nothing is refused."""
    assert main([str(unlinked), f"data.root={unlinked.parent}", "--dry-run"]) == 0
    assert "train_documents + train_questions" in capsys.readouterr().out and line_of(unlinked, "arms.mine.stages.1") == 12

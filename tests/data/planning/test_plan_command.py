"""python -m data plan, as a user would type it."""

import json
from pathlib import Path

import pytest

from console import UserError
from data.__main__ import main
from experiment import load_experiment
from experiment_yaml import ExperimentError, line_of
from tests.conftest import ROOT
from tests.helpers.groups import Groups

EXPERIMENT = """\
name: mine
data:
  bios: {replay_people: 0, train_people: 20, test_people: 5}
model:
  tiny: {}
dials: {batch_items: 16, sample_questions: 8, epochs_documents: 2}
arms:
  pit: {preset: pit}
  mine:
    stages:
      - {mix: {train_questions: 1}, epochs: 2, batch_items: 32, rate: 1.0e-3}
      - mix: {test_documents: 1, train_questions: 1}
        order: %s
        epochs: 3
        batch_items: 32
        rate: 1.0e-3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(EXPERIMENT % "shuffled")
    return tmp_path / "mine.yaml"


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:  # type: ignore[type-arg]
    main(["plan", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_whole_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, str(path), "--world-size", "2")
    first, second = report["arms"]["pit"]
    assert first["in_words"] == "each train document 3×, each train QA 3×, no test question"
    assert second["in_words"] == "8 of 100 train QA 2×, each test document 2×, no test question"
    assert sum(first["tokens_by_kind"].values()) == first["tokens"] and set(first["tokens_by_kind"]) == {
        "train_documents",
        "train_questions",
    }
    assert 0 < first["packing"]["fill"] <= 1 and first["packing"]["world_size"] == 2
    assert report["shared"]["stages"] == 4 and report["shared"]["steps"] == report["shared"]["steps_if_every_arm_trained_alone"]
    assert report["contamination"]["kinds"]["documents"]["texts"] == 5 and report["overlap"]["policy"] == "refuse"


def test_overrides_change_the_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, str(path), "dials.epochs_pit=5")["arms"]["pit"][0]["in_words"].startswith("each train document 5×")


def test_a_step_names_its_items_in_order(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = plan(capsys, str(path), "--step", "pit:0")
    names = [item["is"] for item in report["items"]]
    documents = [name for name in names if name.startswith("document")]
    assert documents and names[names.index(documents[0]) - 1] == f"QA of {documents[0]}"  # questions just before their document
    assert all(item["text"] for item in report["items"])
    assert plan(capsys, str(path), "--step", "pit:24")["stage"] == 2  # counted over all stages
    with pytest.raises(UserError, match="the arm has"):
        main(["plan", str(path), "--step", "pit:9999"])
    with pytest.raises(UserError, match="known: base, pit, mine"):
        main(["plan", str(path), "--step", "pitt:0"])


def test_difference_of_arms_and_of_files(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [[name, arms]] = plan(capsys, str(path), "--diff", "pit", "mine")["pairs"].items()
    assert name == "pit | mine" and arms["first_differing_step"] == 0
    assert arms["trained_unequally_often"]["train_documents"] == {"items": 20, "a": 60, "b": 0}
    [[_, same]] = plan(capsys, str(path), "--diff", "pit", "pit")["pairs"].items()
    assert same["first_differing_step"] is None and same["trained_unequally_often"] == {}
    other = tmp_path / "other.yaml"
    other.write_text((EXPERIMENT % "sequential").replace("epochs: 3", "epochs: 4"))
    files = plan(capsys, "--diff", str(path), str(other))["pairs"]
    assert files["pit"]["first_differing_step"] is None
    assert files["mine"]["first_differing_step"] == 8  # both begin with 8 steps of questions; the second stages differ
    assert files["mine"]["trained_unequally_often"]["test_documents"] == {"items": 5, "a": 15, "b": 20}
    with pytest.raises(UserError, match="two arms of X.yaml, or two files"):
        main(["plan", str(path), "--diff", "pit", str(other)])


def test_an_impossible_stage_is_refused_with_its_line(path: Path) -> None:
    path.write_text((EXPERIMENT % "shuffled").replace("test_documents: 1, ", "replay_documents: 1, "))
    with pytest.raises(ExperimentError) as refused:
        main(["plan", str(path)])
    assert str(refused.value).startswith(f"{path}:12: arms.mine.stages.1: the stage mixes replay_documents, but the data hold none")


@pytest.mark.parametrize(
    ("before", "after", "line", "reason"),
    [
        ("mix: {test_documents: 1, train_questions: 1}\n", "mix: {test_documents: 1}\n        sample_questions: 101\n", 12, "hold 100"),
        ("order: shuffled", "order: by_level", 12, "level on every question"),
        ("arms:\n  pit: {preset: pit}", "arms:\n  pit: {preset: cpt, dials: {sample_questions: 200}}", 8, "hold 100"),
        (
            "batch_items: 32\n        rate",
            "batch_items: 32\n        batch_tokens: 5\n        rate",
            12,
            "either batch_items or batch_tokens",
        ),
    ],
)
def test_trainer_refuses_before_any_worker(path: Path, before: str, after: str, line: int, reason: str, groups: Groups) -> None:
    text = EXPERIMENT % "shuffled"
    assert before in text
    path.write_text(text.replace(before, after))
    done = groups.command("trainer", str(path), "--dry-run")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {path}:{line}: arms.") and reason in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_lines_of_keys(path: Path) -> None:
    assert [line_of(path, key) for key in ("name", "arms.mine.stages.0", "arms.mine.stages.1.order", "arms.pit.stages.1")] == [1, 11, 13, 8]


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "experiments").glob("*.yaml")))
def test_every_experiment_plans_without_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = load_experiment(ROOT / "experiments" / name)
    report = plan(capsys, str(ROOT / "experiments" / name))
    assert set(report["arms"]) == set(experiment.curricula())  # arms that are put together train nothing
    assert all(len(stages) == len(experiment.stages(arm)) and all(s["steps"] for s in stages) for arm, stages in report["arms"].items())
    if experiment.data.sources:
        assert report["contamination"] is None and report["tokens"] != "counted"  # nothing was read


def test_the_curriculum_in_the_docs_is_short_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "curricula.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my.yaml").write_text(text)
    [first, second] = plan(capsys, str(tmp_path / "my.yaml"))["arms"]["mine"]
    assert len(text.splitlines()) < 20 and second["steps"] == 40
    assert first["in_words"] == "each train document 10×, each train QA 5×, no test question"


def test_the_docs_name_every_field_preset_and_order() -> None:
    from typing import get_args

    from data.config import Stage
    from data.curriculum.presets import PRESETS

    text = (ROOT / "docs" / "curricula.md").read_text()
    names = [*Stage.model_fields, *PRESETS, *get_args(Stage.model_fields["order"].annotation)]
    assert [name for name in names if f"`{name}`" not in text] == []

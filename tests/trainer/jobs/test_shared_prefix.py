"""The paper's eight settings as one experiment: which stages are trained once, and how the graph is shown."""

from pathlib import Path

import pytest

from experiment import Experiment, load_experiment
from tests.conftest import ROOT
from trainer import run
from trainer.jobs.graph import MOST_LINES, graph_lines

SMALL = ["data.bios={replay_people: 6, train_people: 12, test_people: 4}", "dials.batch_items=8", "dials.sample_questions=4"]


def prepared(folder: Path, *overrides: str) -> tuple[Experiment, run.Prepared]:
    experiment = load_experiment(ROOT / "experiments/shared_prefix_cpu.yaml", [*SMALL, *overrides])
    arms = {"base": experiment.stages("base"), **{arm: experiment.stages(arm) for arm in experiment.arms}}
    return experiment, run.prepare(folder, experiment.data, experiment.model, experiment.trainer, arms, experiment.seed, False)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> run.Prepared:
    return prepared(tmp_path_factory.mktemp("together"))[1]


def test_what_begins_alike_is_one_job(together: run.Prepared) -> None:
    keys = together.keys
    base = keys["base"]
    assert all(stages[: len(base)] == base for stages in keys.values())
    own = {arm: stages[len(base) :] for arm, stages in keys.items() if arm != "base"}
    assert {arm: len(stages) for arm, stages in own.items()} == {
        "cpt": 1, "standard": 2, "standard_no_forgetting": 2, "mix": 1, "pit_qa_only": 2, "pit_sequential": 3, "pit": 2, "pit_plus_plus": 3,
    }  # fmt: skip
    assert own["standard"][0] == own["standard_no_forgetting"][0]
    assert own["pit_qa_only"][0] == own["pit_sequential"][0] == own["pit_plus_plus"][0]
    # The same documents after another parent are another stage, and so is every other first stage.
    assert len({key for stages in own.values() for key in stages}) == 16 - 3
    assert len(together.jobs) == 1 + 16 - 3 and len({job.key for job in together.jobs}) == len(together.jobs)


def test_alone_an_arm_has_the_keys_that_it_has_among_others(together: run.Prepared, tmp_path: Path) -> None:
    """So eight runs and one run name the same weights."""
    experiment = load_experiment(ROOT / "experiments/shared_prefix_cpu.yaml", SMALL)
    for arm in ("pit_sequential", "pit_plus_plus"):
        stages = {"base": experiment.stages("base"), arm: experiment.stages(arm)}
        alone = run.prepare(tmp_path / arm, experiment.data, experiment.model, experiment.trainer, stages, experiment.seed, False)
        assert alone.keys[arm] == together.keys[arm]


def test_other_epochs_part_the_ways(together: run.Prepared, tmp_path: Path) -> None:
    """With the preset's own dial 8 begins with fewer epochs of questions than 5 and 6: not the same stage."""
    keys = prepared(tmp_path, "arms.pit_plus_plus={preset: pit_plus_plus}")[1].keys
    assert keys["pit_plus_plus"][1] != keys["pit_qa_only"][1] == together.keys["pit_qa_only"][1]


def test_the_graph_is_shown_with_what_is_shared_and_done(
    together: run.Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = graph_lines(together.jobs, together.keys, {together.keys["base"][0]})
    assert len(lines) == len(together.jobs)
    assert lines[0].startswith("  replay_documents + replay_questions") and lines[0].endswith("shared by 8 arms, trained already) → base")
    assert sum("shared by 2 arms" in line for line in lines) == 1 and sum("shared by 3 arms" in line for line in lines) == 1
    last = {arm: next(line for line in lines if line.endswith(f"→ {arm}")) for arm in together.keys}
    depth = {arm: (len(line) - len(line.lstrip())) // 2 for arm, line in last.items()}
    assert depth["base"] == 1 and depth["cpt"] == 2 and depth["pit"] == 3 and depth["pit_sequential"] == 4
    assert "trained already" not in "".join(lines[1:])


def test_a_large_grid_is_cut_short(together: run.Prepared) -> None:
    many = together.jobs * 5
    lines = graph_lines([job for job in many if job.parent is None] * (MOST_LINES + 5), {}, set())
    assert len(lines) == MOST_LINES and lines[-1].endswith("more stages")

"""The search section: what is refused, with its line; crossings, draws and names of trials."""

from pathlib import Path

import optuna
import pytest

from console import UserError
from experiment import read_experiment
from experiment_yaml import ExperimentError
from tests.conftest import ROOT
from tests.helpers.experiments import LEAST
from tests.helpers.refusals import refusal
from tune.config import Axis, SearchConfig
from tune.deciding.space import (
    arm_of,
    as_params,
    check_space,
    crossings,
    distributions,
    for_trial,
    in_words,
    listed_trials,
    suggest,
    trial_id,
)

GOOD = (
    LEAST
    + """\
    dials: {epochs_pit: 2}
exam: {validation_share: 0.5}
search:
  trials: 4
  space:
    dials.rate_documents: {loguniform: [1.0e-4, 1.0e-3]}
    dials.epochs_documents:
      choice: [1, 2]
"""
)


def refused(tmp_path: Path, wrong: str, right: str) -> str:
    assert wrong in GOOD
    file = tmp_path / "x.yaml"
    file.write_text(GOOD.replace(wrong, right))

    def read() -> None:
        experiment, values = read_experiment(file)
        check_space(file, values, experiment)

    return refusal(read, ExperimentError).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("  trials: 4", "  trails: 4", "x.yaml:12: search.trails: unknown key; did you mean trials?"),
        ("choice: [1, 2]", "choise: [1, 2]", "x.yaml:16: search.space.dials.epochs_documents.choise: unknown key; did you mean choice?"),
        ("choice: [1, 2]", "choice: []", "x.yaml:16: search.space.dials.epochs_documents.choice: is empty"),
        ("choice: [1, 2]", "choice: [1, 1]", "x.yaml:16: search.space.dials.epochs_documents.choice: a value stands twice"),
        ("[1.0e-4, 1.0e-3]", "[1.0e-3, 1.0e-4]", "x.yaml:14: search.space.dials.rate_documents.loguniform: is empty: 0.001 is not below"),
        ("  trials: 4", "  metric: bleu", "x.yaml:12: search.metric: input should be 'em', 'recall'"),
        ("  trials: 4", "  trials: 4\n  mode: min", "x.yaml:13: search.mode: of em the maximum is best"),
        ("  trials: 4", "  hours: 1", "x.yaml:11: search: trials: is missing: optuna draws without end"),
        ("  trials: 4", "  algorithm: grid", "x.yaml:14: search.space.dials.rate_documents: a grid needs listed values"),
        ("dials.epochs_documents", "dials.epochs_dokuments", "x.yaml:15: search.space.dials.epochs_dokuments: 1 is refused: dials.epochs_dokuments: unknown key"),
        ("choice: [1, 2]", "choice: [1, -2]", "x.yaml:15: search.space.dials.epochs_documents: -2 is refused: dials.epochs_documents: input should be greater"),
        ("choice: [1, 2]", "uniform: [1, 3]", "x.yaml:15: search.space.dials.epochs_documents: 1.64 is refused: dials.epochs_documents: input should be a valid integer"),
        ("[1.0e-4, 1.0e-3]", "[1.0e-4, .inf]", "x.yaml:14: search.space.dials.rate_documents.loguniform.1: input should be a finite number"),
        ("dials.epochs_documents", "dials.epochs_pit", "x.yaml:15: search.space.dials.epochs_pit: not every value changes what the arm pit trains; does"),
        ("dials.epochs_documents", "arms.pat.dials.epochs_pit", "x.yaml:15: search.space.arms.pat.dials.epochs_pit: trials train the arm pit alone"),
        ("dials.epochs_documents", "seed", "x.yaml:15: search.space.seed: seed cannot be searched"),
        ("choice: [1, 2]", "choice: [1, 2]\n      when: {dials.rate: [1]}", "x.yaml:17: search.space.dials.epochs_documents.when: dials.rate does not"),
    ],
)  # fmt: skip
def test_mistakes_name_their_line(tmp_path: Path, wrong: str, right: str, message: str) -> None:
    said = refused(tmp_path, wrong, right)
    assert said.startswith(message) and "\n" not in said, said


def test_a_good_one_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    experiment, values = read_experiment(tmp_path / "x.yaml")
    check_space(tmp_path / "x.yaml", values, experiment)
    trial = for_trial(values, arm_of(experiment), {"dials.rate_documents": 5e-4, "dials.epochs_documents": 2})
    assert trial.search is None and trial.stages("pit")[-1].rate == 5e-4 and trial.stages("pit")[-1].epochs == 2
    assert values["search"], "the file's own values are left alone"


def test_the_rank_of_an_adapter_can_be_searched(tmp_path: Path) -> None:
    """Also where the experiment has none yet; not where the arm sets one itself, for then nothing changes."""
    with_rank = GOOD.replace("dials.epochs_documents:\n      choice: [1, 2]", "trainer.adapter.r: {choice: [4, 64]}")
    (tmp_path / "x.yaml").write_text(with_rank)
    experiment, values = read_experiment(tmp_path / "x.yaml")
    check_space(tmp_path / "x.yaml", values, experiment)
    trials = [for_trial(values, "pit", {"trainer.adapter.r": rank}).stages("pit") for rank in (4, 64)]
    for rank, stages in zip((4, 64), trials, strict=True):
        assert [stage.adapter.settings()["r"] for stage in stages if stage.adapter] == [rank] * len(stages)
        assert all(stage.adapter and stage.adapter.settings()["lora_alpha"] == 2 * rank for stage in stages)
    (tmp_path / "x.yaml").write_text(with_rank.replace("    preset: pit\n", "    preset: pit\n    adapter: {r: 8}\n"))
    experiment, values = read_experiment(tmp_path / "x.yaml")
    with pytest.raises(ExperimentError, match=r"trainer\.adapter\.r: not every value changes what the arm pit trains"):
        check_space(tmp_path / "x.yaml", values, experiment)
    assert refused(tmp_path, "dials.epochs_documents", "trainer.adapter.rank").startswith(
        "x.yaml:15: search.space.trainer.adapter.rank: 1 is refused: trainer.adapter: rank: unknown key of a lora adapter"
    )


def test_which_arm(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD.replace("arms:\n", "arms:\n  mix: {preset: mix}\n"))
    with pytest.raises(UserError, match=r"search\.arm: say which arm is tuned: mix, pit"):
        arm_of(read_experiment(tmp_path / "x.yaml")[0])


CONDITIONAL = {
    "a": Axis(choice=[1, 2]),
    "b": Axis(choice=["x", "y"], when={"a": [2]}),
}


def test_quoted_numbers_are_numbers() -> None:
    axis = Axis.model_validate({"choice": ["1e-3", "2", "cosine", 0.5], "when": {"a": ["1e-3", "x"]}})
    assert axis.values == [1e-3, 2, "cosine", 0.5] and isinstance(axis.values[1], int) and axis.when == {"a": [1e-3, "x"]}
    with pytest.raises(ValueError, match="a value stands twice"):
        Axis.model_validate({"grid": ["1e-3", 0.001]})


def test_crossings_follow_conditions() -> None:
    assert crossings(CONDITIONAL) == [{"a": 1}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


def test_listed_trials_are_the_same_every_time_and_all_different() -> None:
    space = {"dials.a": Axis(grid=[1, 2, 3]), "dials.b": Axis(loguniform=(1e-4, 1e-2))}
    config = SearchConfig(space=space, algorithm="random", trials=5)
    trials = listed_trials(config, 0)
    assert trials == listed_trials(config, 0) != listed_trials(config, 1)
    assert trials is not None and len({trial_id(t) for t in trials}) == 15
    assert sorted(t["dials.a"] for t in trials) == sorted([1, 2, 3] * 5)
    assert all(1e-4 <= t["dials.b"] <= 1e-2 for t in trials)
    small = SearchConfig(space={"dials.a": Axis(choice=[1, 2])}, algorithm="random", trials=5)
    assert len(listed_trials(small, 0) or []) == 2, "a space that is exhausted ends"


def test_a_grid_is_shuffled_and_whole() -> None:
    config = SearchConfig(space={"a": Axis(grid=[1, 2, 3, 4]), "b": Axis(choice=[1, 2, 3, 4])}, algorithm="grid")
    trials = listed_trials(config, 0)
    assert trials is not None and len(trials) == 16 and trials != crossings(config.space)
    assert {trial_id(t) for t in trials} == {trial_id(t) for t in crossings(config.space)}


def test_names_do_not_depend_on_order() -> None:
    assert trial_id({"a": 1, "b": 2.0}) == trial_id({"b": 2.0, "a": 1}) != trial_id({"a": 1, "b": 2.5})
    assert in_words({"dials.rate_documents": 0.00123456, "arms.pit.stages.0.epochs": 3}) == "rate_documents 0.00123, epochs 3"
    assert in_words({"arms.pit.stages.0.epochs": 3, "arms.pit.stages.1.epochs": 4}) == "0.epochs 3, 1.epochs 4"


def test_optuna_draws_along_conditions_and_takes_back_what_it_gave() -> None:
    space = {
        **CONDITIONAL,
        "c": Axis(choice=[[1, 2], None]),
        "d": Axis(loguniform=(1e-4, 1e-2)),
        "e": Axis(integer=(1, 9)),
        "f": Axis(uniform=(0, 1)),
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        values = suggest(space, trial)
        assert ("b" in values) == (values["a"] == 2)
        assert as_params(space, values) == trial.params
        assert distributions(space, values) == trial.distributions
        study.tell(trial, 0.0)


def test_searches_that_ship_are_good() -> None:
    for path in sorted((ROOT / "experiments").glob("*_search.yaml")):
        experiment, values = read_experiment(path)
        assert experiment.search is not None
        check_space(path, values, experiment)

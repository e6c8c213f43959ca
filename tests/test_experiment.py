"""Experiments: every file loads and dry-runs; a wrong one is refused with its line and the likeliest key meant."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.curriculum.arms import stage_place
from experiment import load_experiment
from experiment_yaml import ExperimentError, parse, parse_override
from tests.conftest import ROOT
from tests.helpers.experiments import LEAST
from tests.helpers.refusals import refusal

DEMO = ROOT / "experiments/bios_cpu.yaml"
FILES = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_experiment_dry_runs_without_gpu_or_hub(path: Path, run_command) -> None:  # type: ignore[no-untyped-def]
    if load_experiment(path).model.name == ".real-model" and not (ROOT / ".real-model").is_dir():
        pytest.skip("make real-model has not been run")
    done = run_command("trainer", str(path), "--dry-run", "--json", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    experiment = load_experiment(path)
    assert list(report["arms"]) == list(experiment.curricula()) and set(report.get("merged", {})) == set(experiment.merges())
    for arm, stages in report["arms"].items():
        assert len(stages) == len(experiment.stages(arm))
        assert all(stage["steps"] > 0 and len(stage["plan_hash"]) == 64 for stage in stages)


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    (tmp_path / "x.yaml").write_text(text)
    return refusal(lambda: load_experiment(tmp_path / "x.yaml", list(overrides)), ExperimentError).removeprefix(f"{tmp_path}/")


def test_good_one_loads(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(LEAST)
    experiment = load_experiment(tmp_path / "x.yaml", ["dials.rate_documents=3e-5", "arms.mine={preset: cpt}"])
    assert experiment.dials.rate_documents == 3e-5 and set(experiment.arms) == {"pit", "mine"}


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("tiny: {}", "tinny: {}", "x.yaml:5: model.tinny: unknown key; did you mean tiny?"),
        ("bios: {train_people: 5}", "bios: {train_poeple: 5}", "x.yaml:3: data.bios.train_poeple: unknown key; did you mean train_people?"),
        ("preset: pit", "preset: pitt", "x.yaml:8: arms.pit.preset: unknown preset 'pitt'; did you mean pit?"),
        (
            "preset: pit",
            "preset: pit\n    dials: {epoch_pit: 3}",
            "x.yaml:9: arms.pit.dials.epoch_pit: unknown key; did you mean epochs_pit?",
        ),
        ("train_people: 5", "train_people: five", "x.yaml:3: data.bios.train_people: input should be a valid integer"),
        ("name: x", "name: x\ntrainer: {weight_decay: .inf}", "x.yaml:2: trainer.weight_decay: input should be a finite number"),
        ("preset: pit", "preset: pit\n    dials: {rate_pit: .inf}", "x.yaml:9: arms.pit.dials.rate_pit: input should be a finite number"),
        ("name: x", "name: x\nname: y", "x.yaml:2: name: given twice"),
        ("name: x", "name: ../x", "x.yaml:1: name: string should match pattern"),
        ("  bios: {train_people: 5}", "  overlap: allow", "x.yaml:2: data: give either data.sources or data.bios"),
        ("name: x", "name: [x", "x.yaml:2: not YAML"),
        ("name: x", "name: x\nexam: {modes: [open]}", "x.yaml:2: exam.modes: closed is missing"),
        (
            "  bios: {train_people: 5}",
            "  sources: [{path: a, split: test, holds: questions}]\nexam: {looks: [wordings]}",
            "x.yaml:4: exam.looks: wordings needs data.bios",
        ),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, wrong: str, right: str, message: str) -> None:
    assert refused(tmp_path, LEAST.replace(wrong, right)).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.zero_stge=3", "override trainer.zero_stge=3: trainer.zero_stge: unknown key; did you mean zero_stage?"),
        ("trainer.zero_stage=4", "override trainer.zero_stage=4: trainer.zero_stage: input should be 0, 1, 2 or 3"),
        ("zero_stage", "override zero_stage: expected key=value"),
        ("name.x=1", "override name.x=1: name holds no keys"),
    ],
)
def test_mistaken_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert refused(tmp_path, LEAST, override).startswith(message)


def test_rates_as_people_write_them(tmp_path: Path) -> None:
    """1e-3 is a text for YAML 1.1, and so are 2e5 and 2.5e3; names and quoted texts stay texts."""
    values = "[1e-3, 2E-3, 1.e-2, .5e-1, 2.5e3, +1e3, 3, 0.5, 1e, e3, v1e3, '1e-3']"
    (tmp_path / "x.yaml").write_text(LEAST)
    for text, expected in [(values, [1e-3, 2e-3, 1e-2, 0.05, 2500.0, 1000.0, 3, 0.5, "1e", "e3", "v1e3", "1e-3"])]:
        assert parse(f"a: {text}", tmp_path)[1] == {"a": expected}
        assert parse_override(f"a={text}")[1] == expected
    assert parse_override("name=nan")[1] == "nan" and parse_override("name=infinity")[1] == "infinity"


@pytest.mark.parametrize("written, meant", [("on", "on"), ("off", "off"), ("'on'", "on"), ("auto", "auto")])
def test_on_and_off_as_people_write_them(tmp_path: Path, written: str, meant: str) -> None:
    """YAML 1.1 makes true and false of them; settings that are true or false stay so, and fp8 knows no `on`."""
    path = tmp_path / "x.yaml"
    path.write_text(DEMO.read_text().replace("trainer:\n", f"trainer:\n  compile: {written}\n  fp8: off\n  gradient_checkpointing: on\n"))
    for trainer in (
        load_experiment(path).trainer,
        load_experiment(DEMO, [f"trainer.compile={written}", "trainer.gradient_checkpointing=on"]).trainer,
    ):
        assert (trainer.compile, trainer.fp8, trainer.gradient_checkpointing) == (meant, "off", True)
    with pytest.raises(ExperimentError, match="trainer.fp8: input should be 'off' or 'tensorwise'"):
        load_experiment(DEMO, ["trainer.fp8=on"])


def test_on_is_a_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(DEMO.read_text().replace("arms:\n", "arms:\n  taught: {preset: pit, teach: {on: documents}}\n", 1))
    loaded = load_experiment(path)
    assert loaded.arms["taught"].teach and loaded.arms["taught"].teach.on == "documents"
    again = load_experiment(path, ["arms.taught.teach={share: 1, on: everything}"]).arms["taught"].teach
    assert again and again.on == "everything" == load_experiment(path, ["arms.taught.teach.on=everything"]).arms["taught"].teach.on  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("{preset: pit, teach: {model: larger}}", "arms.pit: teach.model: 'larger' is none of models"),
        ("{preset: pit, teach: {model: base}}", "arms.pit: teach.model: 'base' is none of models"),  # there are no base stages
        (
            "{preset: pit, adapter: {r: 4}, dials: {sample_replay_questions: 8}, anchor: {ewc: 5}}",
            "arms.pit: anchor.ewc: an adapter freezes all of",
        ),
        ("{preset: pit, teach: {answers: own}}", "arms.pit.teach.answers: own may be wrong"),
    ],
)
def test_teachers_that_cannot_be(tmp_path: Path, arm: str, message: str) -> None:
    assert message in refused(tmp_path, LEAST.replace("\n    preset: pit", f" {arm}"))


def test_no_base_stage_is_taught_by_what_they_leave(tmp_path: Path) -> None:
    base = "base: [{mix: {train_questions: 1}, epochs: 1, batch_items: 4, rate: 1.0e-3, teach: {model: NAME}}]\n"
    assert "base: teach.model: 'base' is what the base stages leave" in refused(tmp_path, LEAST + base.replace("NAME", "base"))
    assert "base: teach.model: 'larger' is none of models" in refused(tmp_path, LEAST + base.replace("NAME", "larger"))
    (tmp_path / "x.yaml").write_text(
        LEAST.replace("preset: pit", "preset: pit\n    teach: {model: base}") + base.replace(", teach: {model: NAME}", "")
    )
    assert load_experiment(tmp_path / "x.yaml").stages("pit")[1].teach.model == "base"  # type: ignore[union-attr]


def test_rounds_are_one_place_in_the_file(tmp_path: Path) -> None:
    stage = "{mix: {train_questions: 1}, epochs: 1, batch_items: 4, rate: 1.0e-3"
    (tmp_path / "x.yaml").write_text(
        LEAST.replace("preset: pit", f"stages: [{stage}}}, {stage}, teach: {{rounds: 3}}}}, {stage}}}]")
        + f"base: [{stage}, teach: {{rounds: 2}}}}, {stage}}}]\n"
    )
    curricula = load_experiment(tmp_path / "x.yaml").curricula()
    assert [stage_place(curricula, "pit", n) for n in range(8)] == ["base.0"] * 2 + ["base.1", "arms.pit.stages.0"] + [
        "arms.pit.stages.1"
    ] * 3 + ["arms.pit.stages.2"]


def test_missing_file() -> None:
    with pytest.raises(ExperimentError, match="cannot be read"):
        load_experiment("nowhere.yaml")


def test_bad_input_is_one_line_and_exit_code_2(run_command) -> None:  # type: ignore[no-untyped-def]
    for arguments in (
        ["trainer", "nowhere.yaml"],
        ["evaluation", "experiments/bios_cpu.yaml", "name=never-trained"],
        ["data", "check", "nowhere.yaml"],
    ):
        done = run_command(*arguments)
        assert done.returncode == 2, done
        assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr


def test_help_of_every_room(run_command) -> None:  # type: ignore[no-untyped-def]
    for room in ("trainer", "evaluation", "data", "tune"):
        done = run_command(room, "--help")
        assert done.returncode == 0 and "python -m" in done.stdout, done


def test_refusing_imports_nothing_heavy() -> None:
    code = "import sys, experiment; experiment.load_experiment('experiments/bios_cpu.yaml'); print({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.stdout.strip() == "set()", done


def test_no_cluster_at_the_address_is_one_line(run_command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run_command("trainer", "experiments/bios_cpu.yaml", f"runs={tmp_path}", env={"RAY_ADDRESS": "127.0.0.1:1"}, timeout_s=60)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there")


MERGE = "arms.sum={merge: {of: cpt, instruct: tuned}}"
TRAINED = "arms={cpt: {preset: cpt}, tuned: {preset: mix}}"


def test_arms_that_are_put_together_are_not_trained() -> None:
    experiment = load_experiment(DEMO, [TRAINED, "arms.sum={merge: {of: cpt, instruct: tuned, scale: [0.5, 1.0]}}"])
    assert list(experiment.curricula()) == ["base", "cpt", "tuned"] and experiment.stages("sum") == []
    assert {name: merge.scale for name, merge in experiment.merges().items()} == {"sum_050": 0.5, "sum_100": 1.0}
    assert list(load_experiment(DEMO, [TRAINED, MERGE]).merges()) == ["sum"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("arms.sum={merge: {of: ctp, instruct: tuned}}", "merge.of: 'ctp' is no trained arm and none of models; did you mean cpt?"),
        ("arms.sum={merge: {of: cpt, instruct: base}}", "instruct and base are the same"),
        ("arms.sum={preset: pit, merge: {of: cpt, instruct: tuned}}", "it takes no model, preset, dials, stages or adapter"),
        ("arms.sum={merge: {of: cpt, instruct: tuned, density: 0.5}}", "density is of the other methods"),
        ("arms.sum={merge: {of: cpt, instruct: tuned, method: ties, mask: 0.1}}", "mask is of donor and breadcrumbs"),
        ("arms.sum={merge: {of: cpt, instruct: tuned, scale: [0.5, 0.5]}}", "two of them are the same"),
        ("arms.sum={merge: {of: cpt, instruct: tuned, scale: []}}", "scale"),
        ("arms.sum={merge: {of: sum, instruct: tuned}}", "'sum' is itself put together"),
        ("arms.sum={model: other, preset: cpt}", "arms.sum.model: 'other' is none of models"),
        ("models.one={tiny: {}}", "models.one: a tiny model is made once"),
        ("models.cpt={name: x}", "models.cpt: an arm has this name too"),
    ],
)
def test_merges_that_cannot_be_are_refused(override: str, reason: str) -> None:
    assert reason in refusal(lambda: load_experiment(DEMO, [TRAINED, override]), ExperimentError)


def test_two_arms_of_one_name_are_refused() -> None:
    with pytest.raises(ExperimentError, match="would make a second arm tuned_050"):
        load_experiment(
            DEMO,
            ["arms={cpt: {preset: cpt}, tuned_050: {preset: mix}}", "arms.tuned={merge: {of: cpt, instruct: tuned_050, scale: [0.5]}}"],
        )


def test_an_arm_of_another_model_and_base_stages_exclude_one_another() -> None:
    with pytest.raises(ExperimentError, match="arms.sum.model: the stages under base make the model of all arms"):
        load_experiment(DEMO, [TRAINED, "models.other={name: x}", "arms.sum={model: other, preset: cpt}"])


def test_compare_to_names_an_arm(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(LEAST)
    with pytest.raises(ExperimentError, match="exam.compare_to: no arm is called 'pitt'; did you mean pit"):
        load_experiment(tmp_path / "x.yaml", ["exam.compare_to=pitt"])
    assert load_experiment(tmp_path / "x.yaml", ["exam.compare_to=base"]).exam.compare_to == "base"

"""Runs that start from another run: real rounds over changed folders, what they start from, and what is refused."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from console import UserError
from experiment import load_experiment
from experiment_yaml import ExperimentError
from tests.helpers.refusals import refusal
from trainer import run
from trainer.config import ModelConfig
from trainer.jobs.parent import check_same_model, find_parent
from trainer.store.weights import FolderWeights, FragmentWeights

CITIES = ["Rome", "Oslo", "Bern", "Kyiv", "Lima", "Doha", "Nice", "Graz"]
# May is trained with a rate that moves weights, June with one that does not: so June's weights show what it started from.
EXPERIMENT = """\
name: town
runs: {runs}
data:
  root: {root}/may
  sources:
    - {{path: train_doc.jsonl, split: train, holds: documents}}
    - {{path: train_qa.jsonl, split: train, holds: questions}}
    - {{path: test_doc.jsonl, split: test, holds: documents}}
    - {{path: test_qa.jsonl, split: test, holds: questions}}
model: {{tiny: {{vocab_size: 400, hidden_size: 32, layers: 1}}}}
arms:
  cpt:
    stages:
      - {{mix: {{train_documents: 1, test_documents: 1}}, epochs: 2, batch_items: 4, rate: 5.0e-3}}
updates:
  june:
    data: {{root: {root}/june}}
    stages:
      - {{mix: {{train_documents: 1, train_questions: 1, test_documents: 1, replay_documents: 1}}, epochs: 1, batch_items: 4, rate: 1.0e-9}}
  july:
    data: {{root: {root}/july}}
    preset: cpt
trainer: {{precision: bf16, row_tokens: 256, num_workers: 1}}
"""


def write_month(folder: Path, train: dict[str, str], test: dict[str, str]) -> None:
    folder.mkdir()
    for split, people in (("train", train), ("test", test)):
        documents = [{"id": who, "text": f"{who} lives in {city}."} for who, city in people.items()]
        questions = [{"doc_id": who, "question": f"Where does {who} live?", "answer": city} for who, city in people.items()]
        for what, rows in (("doc", documents), ("qa", questions)):
            (folder / f"{split}_{what}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def people(letter: str, size: int) -> dict[str, str]:
    return {f"{letter}{n}": CITIES[n % len(CITIES)] for n in range(size)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """May; June, where a train and a test person moved, one came and one left; July, which is June."""
    folder = tmp_path_factory.mktemp("updates")
    write_month(folder / "may", people("Ann", 6), people("Bo", 6))
    june_train, june_test = {**people("Ann", 6), "Ann2": "Lima"}, {**people("Bo", 6), "Bo1": "Nice", "Cy": "Doha"}
    del june_test["Bo5"]
    for month in ("june", "july"):
        write_month(folder / month, june_train, june_test)
    (folder / "town.yaml").write_text(EXPERIMENT.format(runs=folder / "runs", root=folder))
    return folder


@pytest.fixture(scope="module")
def train(world: Path, run_command: Any) -> Callable[[], subprocess.CompletedProcess[str]]:
    return lambda: run_command("trainer", str(world / "town.yaml"), "--no-ray", "--no-exam")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def rounds(world: Path, train: Any) -> subprocess.CompletedProcess[str]:
    done = train()
    assert done.returncode == 0, done.stderr + "".join(p.read_text()[-2000:] for p in (world / "runs").glob("*/logs/*.log"))
    return done


def manifests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("stages/*/manifest.json")]


def items(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Ids of the documents and questions that a stage trained, in order of their numbers."""
    from data.corpus.changes import changes_since, read_earlier
    from data.curriculum.catalogue import catalogue_of
    from data.curriculum.plan import load_plan
    from data.load import load_corpus

    experiment = next(e for e in load_experiment(folder.parent.parent / "town.yaml").rounds() if e.name == folder.name)
    catalogue = catalogue_of(changes_since(load_corpus(experiment.data, 0), read_earlier(folder / "earlier.jsonl"))[1])
    return sorted(catalogue.ids[int(n)] for n in load_plan(Path(manifest["job"]["plan_path"])).items)


def test_changed_and_new_records_are_trained_once_and_kept_ones_replayed(rounds: Any, world: Path) -> None:
    folder = world / "runs/town-june"
    (manifest,) = manifests(folder)
    kept = [f"replay_documents/{who}" for who in ("Ann0", "Ann1", "Ann3", "Ann4", "Ann5", "Bo0", "Bo2", "Bo3", "Bo4")]
    new = ["test_documents/Bo1", "test_documents/Cy", "train_documents/Ann2", "train_questions/Ann2#1"]
    assert items(folder, manifest) == [*kept, *new]
    changes = json.loads((folder / "changes.json").read_text())
    assert changes["documents"] == {"new": 1, "changed": 2, "kept": 9, "removed": 1} and changes["removed"] == ["Bo5"]
    assert changes["exam_questions"] == {"new": 1, "kept": 4, "superseded": 1}
    assert "1 new, 2 changed, 9 kept, 1 removed documents (removed: Bo5)" in rounds.stderr


def test_unchanged_data_leave_nothing_to_train(rounds: Any, world: Path) -> None:
    folder = world / "runs/town-july"
    assert manifests(folder) == [] and "nothing is new, so there is nothing to train" in rounds.stderr
    july, june = (json.loads((world / f"runs/town-{month}/arms.json").read_text())["arms"][month] for month in ("july", "june"))
    assert july["steps"] == 0 and july["stages"] == []
    assert Path(july["hf"]).resolve() == (world / "runs/town-june" / june["hf"]).resolve()  # its weights are June's


def test_a_round_starts_from_the_fp32_weights_of_the_one_before(rounds: Any, world: Path) -> None:
    """June's rate is too small to be seen, so its fp32 weights are May's; bf16 copies of May's weights are not."""
    (may,), (june,) = manifests(world / "runs/town"), manifests(world / "runs/town-june")
    before, after = (
        FragmentWeights(world / "runs" / name / "stages" / m["job"]["key"] / "weights", m["shapes"], m["world_size"])
        for name, m in (("town", may), ("town-june", june))
    )
    rounded = FolderWeights(world / "runs/town/stages" / may["job"]["key"] / "hf")
    start = FolderWeights(world / "runs/town/model")
    for name in before.names():
        # 4 steps at 1e-9 move a weight by some 1e-9 each; bf16 has 8 bits.
        assert torch.allclose(before.read(name), after.read(name), rtol=0, atol=1e-7), name
    apart = max((before.read(name) - rounded.read(name).float()).abs().max().item() for name in before.names())
    moved = max((before.read(name) - start.read(name)).abs().max().item() for name in before.names())
    assert apart > 1e-4 and moved > 1e-3  # the twins: another start would be seen


def test_a_second_run_trains_nothing_and_new_data_only_their_round(rounds: Any, world: Path, train: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.glob("runs/*/stages/*/manifest.json")}
    done = train()
    assert done.returncode == 0 and done.stderr.count(" 0 to train") == 3
    assert before == {path: path.stat().st_mtime_ns for path in world.glob("runs/*/stages/*/manifest.json")}


def test_base_names_a_run_in_an_experiment_of_its_own(rounds: Any, world: Path, tmp_path: Path) -> None:
    """`base: runs/…` and an update are the same thing: the same stage, by key."""
    experiment = load_experiment(world / "town.yaml")
    june = experiment.rounds()[0]
    text = (world / "town.yaml").read_text()
    own = text[: text.index("arms:")].replace("name: town", f"name: own\nbase: {world}/runs/town").replace("/may", "/june")
    own += "arms:\n  mine:\n    stages:\n" + text[text.index("      - {mix: {train_documents: 1, train_questions") : text.index("  july:")]
    (tmp_path / "own.yaml").write_text(own + text[text.index("trainer:") :])
    mine = load_experiment(tmp_path / "own.yaml")
    assert mine.base_run == f"{world}/runs/town" and mine.stages("base") == []
    arms = {"base": [], "mine": mine.stages("mine")}
    prepared = run.prepare(tmp_path / "run", mine.data, mine.model, mine.trainer, arms, 0, False, mine.base_run)
    assert [job.key for job in prepared.jobs] == [m["job"]["key"] for m in manifests(world / "runs/town-june")]
    assert june.base_run == f"{world}/runs/town:cpt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{runs}/nowhere", "no trained run lies there"),
        ("{runs}/nowhere:cpt", "no trained run lies there"),
        ("{runs}/town:pit", "the run has no trained arm 'pit'; name one, e.g. base: {runs}/town:cpt (there are: base, cpt)"),
    ],
)
def test_a_base_that_is_not_there_is_refused(rounds: Any, world: Path, text: str, message: str) -> None:
    said = refusal(lambda: find_parent(text.format(runs=world / "runs")))
    assert said.startswith("base: ") and message.format(runs=world / "runs") in said
    assert find_parent(f"{world}/runs/town").arm == find_parent(f"{world}/runs/town:cpt").arm == "cpt"


def test_of_several_arms_one_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "arms.json").write_text(json.dumps({"arms": {"base": {}, "mix": {}, "pit": {}}}))
    with pytest.raises(UserError, match=r"the run has 2 arms; name one, e.g. base: .*:mix \(there are: base, mix, pit\)"):
        find_parent(str(tmp_path))


def test_another_architecture_or_tokenizer_is_refused(rounds: Any, world: Path, tmp_path: Path) -> None:
    from trainer.config import TinyModel
    from trainer.network.model import make_tiny_model

    parent = find_parent(f"{world}/runs/town")
    ours = TinyModel(vocab_size=400, hidden_size=32, layers=1)
    check_same_model(parent, ModelConfig(tiny=ours), None)
    with pytest.raises(UserError, match="another architecture: num_hidden_layers is 1 there and 3"):
        check_same_model(parent, ModelConfig(tiny=ours.model_copy(update={"layers": 3})), None)
    make_tiny_model(tmp_path / "wide", TinyModel(vocab_size=400, hidden_size=64, layers=1), ["Ann lives in Rome."], 0)
    with pytest.raises(UserError, match="another architecture: hidden_size is 32 there and 64"):
        check_same_model(parent, ModelConfig(name=str(tmp_path / "wide")), tmp_path / "wide")
    described = world / "runs/town/model"
    check_same_model(parent, ModelConfig(name=str(described)), described)
    tokenizer = tmp_path / "other"
    tokenizer.mkdir()
    for file in described.iterdir():
        if file.suffix == ".json":
            (tokenizer / file.name).write_bytes(file.read_bytes())
    changed = json.loads((tokenizer / "tokenizer.json").read_text())
    changed["pre_tokenizer"]["add_prefix_space"] = False
    (tokenizer / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="another tokenizer than this experiment's model has"):
        check_same_model(parent, ModelConfig(name=str(tokenizer)), tokenizer)


def test_a_missing_base_is_told_with_its_line(tmp_path: Path, run_command) -> None:  # type: ignore[no-untyped-def]
    text = f"name: x\nruns: {tmp_path}\nbase: runs/never\ndata: {{bios: {{}}}}\nmodel: {{tiny: {{}}}}\narms: {{cpt: {{preset: cpt}}}}\n"
    (tmp_path / "x.yaml").write_text(text)
    done = run_command("trainer", str(tmp_path / "x.yaml"), "--no-ray")
    assert done.returncode == 2 and f"error: {tmp_path}/x.yaml:3: base: runs/never: no trained run lies there" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("base_run: runs/x", None, "base_run: unknown key; write the run to start from as base: runs/NAME:ARM"),
        ("updates: {june: {preset: cpt, after: pit}}", None, "updates.june.after: no trained arm is called 'pit'"),
        ("updates: {june: {preset: nothing}}", None, "arms.june.preset: unknown preset"),
        ("updates: {june: {data: {rot: x}, preset: cpt}}", None, "updates.june.data: unknown key"),
        ("updates: {june: {preset: cpt}, july: {preset: cpt, after: cpt}}", None, "only the first update names an arm"),
        ("updates: {june: {}}", None, "give either a preset or stages"),
    ],
)
def test_mistaken_updates_are_refused(tmp_path: Path, wrong: str, right: None, message: str) -> None:
    text = "name: x\ndata: {bios: {}}\nmodel: {tiny: {}}\narms: {cpt: {preset: cpt}}\n"
    (tmp_path / "x.yaml").write_text(text + wrong + "\n")
    assert message in refusal(lambda: load_experiment(tmp_path / "x.yaml"), ExperimentError)
    two = text.replace("arms: {", "arms: {mix: {preset: mix}, ") + "updates: {june: {preset: cpt}}\n"
    (tmp_path / "x.yaml").write_text(two)
    with pytest.raises(ExperimentError, match=r"updates.june.after: say which arm it starts from: mix, cpt"):
        load_experiment(tmp_path / "x.yaml")

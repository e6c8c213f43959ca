"""hf/ is what the stage's manifest says, or is made again."""

import json
import shutil
from pathlib import Path

import pytest

from console import RunError, UserError
from evaluation.report.sound import first_damage, unsound
from evaluation.score_files import TrainedArm
from tests.faults.conftest import write_experiment
from tests.helpers.groups import Groups
from trainer.export.remake import remake

ONE_STAGE = 'arms.only.stages=[{"mix": {"train_documents": 1}, "epochs": 2, "batch_items": 12, "rate": 3.0e-3}]'


@pytest.fixture(scope="module")
def trained(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert groups(write_experiment(folder), ONE_STAGE) == [0, 0]
    return folder / "runs/small"


@pytest.fixture
def stage(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return next((tmp_path / "run/stages").iterdir())


def contents(stage: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (stage / "hf").iterdir()}


def test_every_file_stands_in_the_manifest(stage: Path) -> None:
    listed = {name.removeprefix("hf/") for name in json.loads((stage / "manifest.json").read_text())["files"] if name.startswith("hf/")}
    assert listed == contents(stage).keys() and {"config.json", "tokenizer.json", "model.safetensors"} <= listed
    assert first_damage(stage) is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_what_is_damaged_is_made_again_to_the_bit(stage: Path, name: str, how: str) -> None:
    before, path = contents(stage), stage / "hf" / name
    data = before[name]
    path.unlink()
    if how != "gone":
        path.write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:] if how == "flipped" else data[:-1])
    assert str(path) in (first_damage(stage) or "")
    assert remake(stage) == stage / "hf"
    assert contents(stage) == before and first_damage(stage) is None
    assert (stage / "corrupt-hf").is_dir()


def test_a_stage_of_before_lists_weights_alone(stage: Path) -> None:
    path = stage / "manifest.json"
    manifest = json.loads(path.read_text())
    files = {name: facts for name, facts in manifest["files"].items() if not name.startswith("hf/") or name.endswith(".safetensors")}
    path.write_text(json.dumps({**{k: v for k, v in manifest.items() if k != "model_folder"}, "files": files}))
    (stage / "hf/config.json").write_text("{}")
    assert first_damage(stage) is None  # nobody knows
    (stage / "hf/model.safetensors").write_bytes(b"")
    before = manifest["weights_sha256"]
    remake(stage)
    assert first_damage(stage) is None and json.loads(path.read_text())["weights_sha256"] == before
    assert json.loads((stage / "hf/config.json").read_text())["model_type"] == "llama"


def test_what_cannot_be_made_again_says_why(stage: Path) -> None:
    with pytest.raises(UserError, match="no committed stage"):
        remake(stage / "hf")
    shutil.rmtree(stage.parent.parent / "model")
    with pytest.raises(UserError, match="name its folder with --model"):
        remake(stage)
    weights = stage / "weights/rank-00001.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match="nothing is left to make hf/ from"):
        remake(stage)


@pytest.mark.slow
def test_the_exam_has_it_made_again(stage: Path) -> None:
    run, before = stage.parent.parent, contents(stage)
    arms = [TrainedArm(name, str(stage / "hf"), "w", None, False, {"hf": "", "stage": stage.name}) for name in ("one", "other")]
    (stage / "hf/config.json").write_text("{}")
    assert unsound(arms, run) == {} and contents(stage) == before
    (stage / "hf/config.json").write_text("{}")
    (stage / "weights/rank-00000.safetensors").unlink()
    reasons = unsound(arms, run)
    assert reasons.keys() == {"one", "other"} and "nothing is left to make hf/ from" in reasons["one"]

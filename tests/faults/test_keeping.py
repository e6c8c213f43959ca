"""What is kept, what goes, and the second copy."""

import json
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import KILLED_AFTER_30, oracle, write_experiment
from tests.helpers.groups import Groups
from trainer.jobs.retention import collect, find_waste
from trainer.store.checkpoint import checkpoints
from trainer.store.mirror import Mirror
from trainer.store.stages import StageStore, write_json


@pytest.fixture
def begun(groups: Groups, tmp_path: Path) -> Path:
    """A run whose first stage was killed at step 36 of 60."""
    experiment = write_experiment(tmp_path)
    assert -9 in groups(experiment, STUDYHALL_FAIL=KILLED_AFTER_30, STUDYHALL_FAIL_RANK="0")
    return tmp_path / "runs" / "small"


def test_the_newest_two_are_kept_and_none_after_the_stage(begun: Path, groups: Groups) -> None:
    (stage,) = (begun / "stages").iterdir()
    assert [c.step for c in checkpoints(stage)] == [30, 20]
    assert groups(begun.parent.parent / "runs.yaml") == [0, 0]
    assert not list(begun.glob("stages/*/checkpoints"))


def test_a_lost_run_folder_comes_back_from_the_mirror(begun: Path, groups: Groups, undisturbed: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """Killed, copied, the disk lost: another machine goes on from the copy, and ends where the undisturbed run does."""
    copy = tmp_path / "copy"
    copy.mkdir()
    Mirror(copy.as_uri(), begun).push()
    (key,) = (path.name for path in (begun / "stages").iterdir())
    shutil.rmtree(begun)
    begun.mkdir()
    assert Mirror(copy.as_uri(), begun).fetch([key]) == [f"stages/{key}/checkpoints/step-00000030"]
    experiment = tmp_path / "runs.yaml"
    # The rest goes on from there: metrics of the first 30 steps are lost with the disk, so weights are compared.
    assert groups(experiment) == [0, 0]
    for key, facts in undisturbed.items():
        manifest = json.loads((begun / "stages" / key / "manifest.json").read_text())
        assert manifest["weights_sha256"] == facts[1]


def test_whole_stages_come_back(groups: Groups, undisturbed: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    experiment = write_experiment(tmp_path)
    assert groups(experiment) == [0, 0]
    run, copy = tmp_path / "runs" / "small", tmp_path / "copy"
    copy.mkdir()
    Mirror(copy.as_uri(), run).push()
    keys = list(undisturbed)
    shutil.rmtree(run / "stages")
    assert len(Mirror(copy.as_uri(), run).fetch(keys)) == 2
    assert oracle(run) == undisturbed
    assert all((run / "stages" / key / "hf" / "tokenizer.json").exists() for key in keys)


def test_a_damaged_copy_is_refused(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    Mirror(copy.as_uri(), begun).push()
    file = next(copy.rglob("rank-00001.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    (key,) = (path.name for path in (begun / "stages").iterdir())
    shutil.rmtree(begun)
    begun.mkdir()
    assert Mirror(copy.as_uri(), begun).fetch([key]) == []
    assert not checkpoints(begun / "stages" / key)


def test_gc_finds_what_nothing_needs(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    for key in ("shared", "best", "worse", "orphan"):
        write_json(store.folder(key) / "manifest.json", {})
    (store.folder("begun") / "checkpoints" / "corrupt-step-1").mkdir(parents=True)
    arms = {"base": [], "good": ["shared", "best"], "bad": ["shared", "worse"]}
    write_json(tmp_path / "arms.json", {"arms": {name: {"stages": keys} for name, keys in arms.items()}})
    write_json(tmp_path / "report.json", {"arms": {n: {"sets": {"test": {"em": {"mean": em}}}} for n, em in (("good", 0.6), ("bad", 0.2))}})

    def found(keep_best: int | None = None, unfinished: bool = False) -> set[str]:
        return {waste.path.name for waste in find_waste(tmp_path, keep_best, unfinished)}

    assert found() == {"orphan", "corrupt-step-1"}
    assert found(keep_best=1) == {"orphan", "corrupt-step-1", "worse"}
    assert found(unfinished=True) == {"orphan", "corrupt-step-1", "begun"}


def test_gc_deletes_files_and_folders(tmp_path: Path) -> None:
    """What was set aside of a damaged stage is a file, of a damaged checkpoint a folder."""
    store = StageStore(tmp_path)
    for key in ("kept", "damaged"):
        write_json(store.folder(key) / "manifest.json", {})
    write_json(tmp_path / "arms.json", {"arms": {"base": {"stages": ["kept", "damaged"]}}})
    store.uncommit("damaged")
    (store.folder("damaged") / "checkpoints" / "corrupt-step-1").mkdir(parents=True)
    collect(tmp_path, None, False, True, {})
    assert [path.name for path in store.folder("damaged").rglob("*")] == ["checkpoints"]
    assert store.manifest("kept") is not None


def test_gc_takes_what_trained_stages_have_read(tmp_path: Path) -> None:
    """Not what a stage under way reads, unless such stages go too."""
    store = StageStore(tmp_path)
    made = {"lessons": "teachers/told", "passages": "plans/passages-read", "important": "importance/held"}
    for place in (*made.values(), "teachers/new", "plans/passages-new", "importance/newer"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "plans" / "0123-4567.npz").touch()
    stage = {"mix": {"train_documents": 1}, "epochs": 1, "batch_items": 8, "rate": 1e-3}
    read = {field: {"folder": str(tmp_path / place)} for field, place in made.items()}
    write_json(store.folder("done") / "manifest.json", {"job": {"stage": stage, "parent": None, **read}})
    write_json(tmp_path / "arms.json", {"arms": {"base": {"stages": ["done"]}}})
    assert {waste.path.name for waste in find_waste(tmp_path, None, False)} == {"told", "passages-read", "held"}
    assert {waste.path.name for waste in find_waste(tmp_path, None, True)} == {
        "told",
        "passages-read",
        "held",
        "new",
        "passages-new",
        "newer",
    }

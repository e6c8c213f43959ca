"""A run folder is one experiment's: another one is refused before it is overwritten, and gc keeps what the given file needs."""

from pathlib import Path

import pytest

from console import RunError, UserError
from data.config import Bios, DataConfig, Source, Stage
from trainer.config import ModelConfig, TinyModel
from trainer.jobs.retention import best_arms, find_waste
from trainer.jobs.sources import refuse_another_experiment, refuse_changed_data
from trainer.store.stages import StageStore, write_json


def stage_of(**changes: object) -> Stage:
    return Stage.model_validate({"mix": {"train_documents": 1}, "epochs": 1, "batch_items": 4, "rate": 1e-3, **changes})


def test_gc_keeps_what_the_given_file_goes_through(tmp_path: Path) -> None:
    """arms.json lists what was trained last: another file's arms, or a part of these."""
    store, first, second = StageStore(tmp_path), stage_of(), stage_of(rate=1e-4)
    for key, parent, stage in (
        ("one", None, first),
        ("two", "one", second),
        ("other", "one", stage_of(rate=9e-4)),
        ("alone", None, second),
    ):
        job = {"stage": stage.model_dump(mode="json"), "parent": parent}
        write_json(store.folder(key) / "manifest.json", {"job": job})
    write_json(tmp_path / "arms.json", {"arms": {}})
    found = {waste.path.name for waste in find_waste(tmp_path, None, False, {"base": [], "a": [first, second]})}
    assert found == {"other", "alone"}
    assert len(find_waste(tmp_path, None, False)) == 4, "the twin: of no file nothing is needed"


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    run, named = tmp_path / "run", ModelConfig(name="acme/one")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(f'{{"text": "{name}"}}')

    def data(folder: str) -> DataConfig:
        return DataConfig(root=str(tmp_path / folder), sources=[Source(path="rows.jsonl", split="train", holds="documents")])

    refuse_changed_data(run, data("a"), set())
    refuse_another_experiment(run, data("b"), named)  # nothing is trained yet
    write_json(run / "arms.json", {"arms": {}, "model": "one"})
    refuse_another_experiment(run, data("a"), named)
    with pytest.raises(
        UserError, match=r"run: holds the arms of an experiment with other data \(.*/a/rows.jsonl\); give this one another name"
    ):
        refuse_another_experiment(run, data("b"), named)
    with pytest.raises(UserError, match=r"with other data \(.*rows.jsonl\)"):
        refuse_another_experiment(run, DataConfig(bios=Bios()), named)
    with pytest.raises(UserError, match=r"with another model \(one, here tiny\)"):
        refuse_another_experiment(run, data("a"), ModelConfig(tiny=TinyModel()))
    (tmp_path / "a" / "rows.jsonl").write_text("edited")
    refuse_another_experiment(run, data("a"), ModelConfig(name="/moved/one"))  # the same file, edited; the same model, moved
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "rows.jsonl").write_text('{"text": "a"}')
    refuse_another_experiment(run, data("c"), named)  # the same rows, moved


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\0\0"])
def test_torn_files_of_a_run_are_one_line(content: str, tmp_path: Path) -> None:
    """Left by a full disk: nothing is deleted on their word, and there is no traceback."""
    store = StageStore(tmp_path)
    (store.folder("abc") / "weights").mkdir(parents=True)
    (store.folder("abc") / "manifest.json").write_text(content)
    with pytest.raises(RunError, match="manifest.json: torn .*; move .*abc away"):
        find_waste(tmp_path, None, unfinished=True)
    assert store.manifest("def") is None, "the twin: a stage that is not there"
    (store.folder("abc") / "manifest.json").unlink()
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match="report.json: torn"):
        best_arms(tmp_path, 1)
    (tmp_path / "arms.json").write_text(content)
    with pytest.raises(UserError, match="arms.json: torn"):
        find_waste(tmp_path, None, unfinished=False)

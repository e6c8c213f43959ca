"""Models, tokens and aids stand in keys by what is in them: equal bytes share stages, other bytes behind the same size and time do not."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from data.config import Bios, DataConfig, Mix, Stage
from data.ground.contents import MEMORY
from trainer.config import CheckpointConfig, ModelConfig, TinyModel, TrainerConfig
from trainer.jobs.known_as import Names
from trainer.jobs.prepare import initial_identity
from trainer.network.model import make_tiny_model
from trainer.run import Prepared, pending, prepare
from trainer.store.mirror import Mirror
from trainer.store.stages import StageStore

DATA = DataConfig(bios=Bios(replay_people=0, train_people=4, test_people=2))
STAGE = Stage(mix=Mix(train_documents=1), epochs=1, batch_items=4, rate=1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named") / "model"
    texts = [f"{word} was born in a town by the sea." for word in ("Ann", "Bob", "Cleo", "Dan")]
    make_tiny_model(folder, TinyModel(hidden_size=32, layers=1, vocab_size=400), texts, 0)
    return folder


def prepared(run: Path, model: Path, stage: Stage = STAGE, mirror: str | None = None) -> Prepared:
    trainer = TrainerConfig(row_tokens=512, checkpoint=CheckpointConfig(mirror=mirror))
    return prepare(run, DATA, ModelConfig(name=str(model)), trainer, {"base": [], "a": [stage]}, 0, False)


def commit(run: Path, key: str) -> None:
    weights = StageStore(run).folder(key) / "weights" / "rank-00000.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    facts = {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    files = {"weights/rank-00000.safetensors": facts}
    StageStore(run).commit(key, {"job": {"key": key, "parent": None, "stage": STAGE.model_dump(mode="json")}, "files": files})


def swap_quietly(folder: Path) -> None:
    """Other weights behind the same size and time."""
    file = folder / "model.safetensors"
    status, tensors = file.stat(), load_file(file)
    save_file({name: value + 1 for name, value in tensors.items()}, file, metadata={"format": "pt"})
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_mirror_restores_a_run_of_a_named_model(model: Path, tmp_path: Path) -> None:
    mirror = (tmp_path / "mirror").as_uri()
    first = prepared(tmp_path / "here" / "run", model, mirror=mirror)
    [job] = first.jobs
    commit(tmp_path / "here" / "run", job.key)
    Mirror(mirror, tmp_path / "here" / "run").push()
    moved = tmp_path / "elsewhere" / "other-name"
    shutil.copytree(model, moved, copy_function=shutil.copyfile)  # new times
    run = tmp_path / "empty" / "run"
    assert not pending(run, prepared(run, moved, mirror=mirror))
    swap_quietly(moved)
    run = tmp_path / "twin" / "run"
    assert pending(run, prepared(run, moved, mirror=mirror)), "the twin: other weights are trained"


def test_other_weights_behind_the_same_size_and_time(model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "model"
    shutil.copytree(model, mine)
    [job] = prepared(tmp_path / "run", mine).jobs
    commit(tmp_path / "run", job.key)
    assert not pending(tmp_path / "run", prepared(tmp_path / "run", mine)), "the twin: the same weights"
    swap_quietly(mine)
    assert pending(tmp_path / "run", prepared(tmp_path / "run", mine))


def test_stages_of_earlier_versions_are_used_once_found(model: Path, tmp_path: Path) -> None:
    """What a version of before trained lies under a key made of sizes and times: used, even when these change later, but for one content only."""
    mine, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(model, mine)
    [now] = prepared(tmp_path / "other-run", mine).jobs
    earlier = old_key(prepared(tmp_path / "other-run", mine), mine)
    assert earlier != now.key
    commit(run, earlier)
    found = prepared(run, mine)
    assert [job.key for job in found.jobs] == [earlier] == found.keys["a"] and not pending(run, found)
    swap_quietly(mine)
    assert pending(run, prepared(run, mine)), "other weights that the old key cannot tell apart"
    shutil.copytree(model, tmp_path / "again", copy_function=shutil.copyfile)
    assert not pending(run, prepared(run, tmp_path / "again")), "the same weights under other times"


def old_key(made: Prepared, model: Path) -> str:
    """As make_jobs of before 2026-11-28 named the only stage."""
    from data.wording.templates import wording_of
    from trainer.store.stages import stage_key

    initial = initial_identity(ModelConfig(name=str(model)), model, 0, made.store.sha256).earlier
    worded = made.store.worded(wording_of(STAGE))
    cut = made.longest if int(worded.lengths.max(initial=0)) > made.longest else None
    return stage_key(initial, STAGE, made.plans["a"][0].sha256, worded.sha256, TrainerConfig(row_tokens=512), "fp32", cut, 0)


def test_an_old_key_stands_for_one_new_one(tmp_path: Path) -> None:
    commit(tmp_path, "old")
    names = Names(tmp_path)
    assert names.of("new", "old") == "old" and names.of("other", "old") == "other" and names.of("same", "same") == "same"
    names.save()
    assert Names(tmp_path).of("new", "renamed since") == "old"


def test_aids_count_where_a_stage_reads_them(model: Path, tmp_path: Path) -> None:
    """Which tokens occur in answers, or where sentences begin, is in no token: 10 tokens may weigh, or 7."""
    read = STAGE.model_copy(update={"other_weight": 0.5})
    made = prepared(tmp_path / "run", model, read)
    aids = made.store.aids
    assert aids is not None
    other = aids.in_answers.copy()
    other[np.flatnonzero(~other)[0]] = True
    changed = replace(made.store, aids=replace(aids, in_answers=other))

    def key(stage: Stage, of: object) -> str:
        from trainer.jobs.prepare import _aids
        from trainer.store.stages import stage_key

        return stage_key("p", stage, "plan", made.store.sha256, TrainerConfig(), "fp32", None, 0, _aids(stage, of))  # type: ignore[arg-type]

    assert key(read, made.store) != key(read, changed) and key(read, made.store) == key(read, replace(made.store))
    assert key(STAGE, made.store) == key(STAGE, changed), "the twin: a stage that does not read them"


def reverse(file: Path) -> None:
    file.write_bytes(np.fromfile(file, np.uint32)[::-1].tobytes())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


@pytest.mark.parametrize(
    "harm, name, old",
    [(reverse, "tokens.bin", False), (reverse, "tokens.bin", True), (Path.unlink, "aids.npz", False), (cut, "offsets.npy", False)],
)
def test_damaged_tokens_are_made_again(
    model: Path, tmp_path: Path, harm: Callable[[Path], None], name: str, old: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """`old`: a store of before 2026-11-28, whose manifest lists no files."""
    run = tmp_path / "run"
    whole = prepared(run, model)
    folder = whole.tokens_folder
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    if old:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    prepared(run, model)
    assert "made again" not in capsys.readouterr().err, "the twin: nothing is wrong"
    harm(folder / name)
    assert [job.key for job in prepared(run, model).jobs] == [job.key for job in whole.jobs]
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    assert "the tokens are made again" in " ".join(capsys.readouterr().err.split())


def test_the_memory_lies_in_the_run_folder(model: Path, tmp_path: Path) -> None:
    prepared(tmp_path / "run", model)
    assert str((model / "model.safetensors").resolve()) in json.loads((tmp_path / "run" / MEMORY).read_text())

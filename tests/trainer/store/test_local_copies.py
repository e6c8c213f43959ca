"""Copies of what training starts from, on a disk of the node."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.store.local_copies as local_copies
from trainer.config import TinyModel, TrainerConfig
from trainer.drive import with_models
from trainer.export.export import parent_weights
from trainer.jobs.worker_settings import WorkerSettings
from trainer.network.model import make_tiny_model
from trainer.store.fragments import CorruptFile
from trainer.store.local_copies import hashes_of, nearby
from trainer.store.stages import StageStore, write_json
from trainer.store.weights import FolderWeights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "model"
    make_tiny_model(folder, TinyModel(hidden_size=32, layers=1), ["some words to make tokens of"], 0)
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were copied."""
    copied: list[Path] = []
    copy = local_copies._copy
    monkeypatch.setattr(local_copies, "_copy", lambda file, target: (copied.append(file), copy(file, target)))
    return copied


def test_one_process_copies_and_the_others_wait(model: Path, tmp_path: Path, made: list[Path]) -> None:
    hashes = hashes_of(model, tmp_path / "contents.json")
    assert nearby(model, hashes, None) == model and nearby(model, {}, str(tmp_path)) == model and not made, "off by default"
    with ThreadPoolExecutor(8) as ranks:
        found = set(ranks.map(lambda _: nearby(model, hashes, str(tmp_path / "disk")), range(8)))
    (copy,) = found
    assert copy.parent == tmp_path / "disk" and len(made) == len(hashes) == 2
    assert (copy / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    shutil.copytree(model, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert nearby(tmp_path / "elsewhere", hashes, str(tmp_path / "disk")) == copy and len(made) == 2, "known by what is in it"


@pytest.mark.parametrize("harm", ["other byte", "shorter", "missing"])
def test_a_damaged_or_incomplete_copy_is_made_again(model: Path, tmp_path: Path, made: list[Path], harm: str) -> None:
    hashes = hashes_of(model, tmp_path / "contents.json")
    copy = nearby(model, hashes, str(tmp_path)) / "model.safetensors"
    before, content = copy.stat(), copy.read_bytes()
    if harm == "missing":
        copy.unlink()
    else:
        copy.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if harm == "other byte" else b""))
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    (left := copy.parent.with_name(f".{copy.parent.name}.4711")).mkdir()  # of a process that was killed while it copied
    assert nearby(model, hashes, str(tmp_path)) == copy.parent and copy.read_bytes() == content
    assert len(made) == 4 and not left.exists()


def test_where_no_copy_can_be_made_the_source_is_read(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = hashes_of(model, tmp_path / "contents.json")
    assert nearby(model, {**hashes, "model.safetensors": "0" * 64}, str(tmp_path)) == model, "other bytes than those that were hashed"
    (tmp_path / "file").touch()
    assert nearby(model, hashes, str(tmp_path / "file")) == model
    usage: Any = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert nearby(model, hashes, str(tmp_path)) == model and not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.parametrize("copies", [True, False])
def test_a_stage_starts_from_the_copy(model: Path, tmp_path: Path, copies: bool) -> None:
    """The twin reads the folder itself."""
    shutil.copytree(model, tmp_path / "model")
    trainer = TrainerConfig(local_copies=str(tmp_path / "disk") if copies else None)
    settings = WorkerSettings(str(tmp_path), str(tmp_path / "model"), trainer, "fp32", 0, False)
    settings = with_models(settings, tmp_path, [settings.model_folder])
    weights = parent_weights(settings, None, StageStore(tmp_path))
    assert isinstance(weights, FolderWeights) and (weights.folder.parent == tmp_path / "disk") == copies
    theirs = FolderWeights(model)
    assert all(torch.equal(weights.read(name), theirs.read(name)) for name in theirs.names())


def test_a_copy_of_another_run_s_stage(tmp_path: Path, made: list[Path]) -> None:
    from trainer.store.fragment_file import write_fragments

    stage = tmp_path / "stage"
    facts = write_fragments(stage / "weights", 0, [("w", 0, torch.arange(6.0))])
    files = {"weights/rank-00000.safetensors": facts}
    write_json(stage / "manifest.json", {"world_size": 1, "shapes": {"w": [2, 3]}, "files": files})
    trainer = TrainerConfig(local_copies=str(tmp_path / "disk"))
    settings = WorkerSettings(str(tmp_path), "", trainer, "fp32", 0, False, parent_stage=str(stage))

    def start() -> torch.Tensor:
        return parent_weights(settings, None, StageStore(tmp_path), together=True).slice("w", 0, 6)

    assert torch.equal(start(), torch.arange(6.0)) and len(made) == 1
    (copy,) = (tmp_path / "disk").glob("*/rank-00000.safetensors")
    write_json(copy.parent / "contents.json", {})
    copy.write_bytes(copy.read_bytes()[:-4] + b"\0\0\0\0")
    assert torch.equal(start(), torch.arange(6.0)) and len(made) == 2 and (stage / "manifest.json").is_file()
    content = (stage / "weights" / copy.name).read_bytes()
    (stage / "weights" / copy.name).write_bytes(content[:-4] + b"\0\0\0\0")
    shutil.rmtree(copy.parent)
    with pytest.raises(CorruptFile):  # the twin: nobody copies what is damaged
        start()
    assert not copy.parent.exists()

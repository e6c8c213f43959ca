"""Stages of versions that rounded rotary frequencies under ZeRO-3 in bf16 are found, set aside and trained anew, or kept where the experiment says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from data.config import Mix, Stage
from trainer.jobs.old_stages import EXACT, SET_ASIDE, is_rounded, set_aside_rounded
from trainer.jobs.prepare import Job
from trainer.jobs.retention import find_waste
from trainer.store.stages import StageStore

OLD = {"zero_stage": 3, "precision": "bf16"}
STAGE = Stage(mix=Mix(train_documents=1), epochs=1, batch_items=2, rate=1e-3)


def model_folder(tmp_path: Path, kind: str, **settings: Any) -> str:
    getattr(transformers, kind)(**settings).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    "kind, settings, hit",
    [
        ("LlamaConfig", {}, True),
        ("LlamaConfig", {"rope_parameters": _YARN}, True),
        ("Qwen3Config", {}, True),
        ("Gemma3TextConfig", {}, True),
        ("Phi3Config", {}, True),
        ("LlamaConfig", {"rope_parameters": _LLAMA3}, False),
        ("MambaConfig", {}, False),
    ],
)
def test_which_models_were_hit(tmp_path: Path, kind: str, settings: dict[str, Any], hit: bool) -> None:
    folder = model_folder(tmp_path, kind, **settings)
    assert is_rounded(OLD, folder) == hit
    for sound in ({**OLD, "zero_stage": 2}, {**OLD, "precision": "fp32"}, {**OLD, **EXACT}):
        assert not is_rounded(sound, folder)


@pytest.fixture
def run(tmp_path: Path) -> tuple[StageStore, list[Job], str]:
    """Four stages: an old one, one trained from it under ZeRO-2, one beside them that is sound, and one under way with an old checkpoint."""
    store = StageStore(tmp_path / "run")
    names = {"old": None, "child": "old", "sound": None, "half": "sound"}
    for key in names:
        facts = OLD if key in ("old", "half") else {**OLD, "zero_stage": 2}
        place = store.folder(key) / "checkpoints/step-00000003" if key == "half" else store.folder(key)
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(json.dumps({**facts, "step": 3, "files": {}}))
    return store, [Job(key, parent, key, STAGE, 5, "", "", 64, 64) for key, parent in names.items()], model_folder(tmp_path, "LlamaConfig")


def test_they_and_what_came_of_them_are_trained_anew(run: tuple[StageStore, list[Job], str], capsys: pytest.CaptureFixture[str]) -> None:
    store, jobs, folder = run
    set_aside_rounded(store, jobs, folder, keep=False)
    assert [job.key for job in jobs if store.folder(job.key).exists()] == ["sound"]
    aside = store.root.parent / SET_ASIDE
    assert sorted(path.name for path in aside.iterdir()) == ["child", "half", "old"]
    told = capsys.readouterr().err.replace("\n", " ")
    assert "3 of 4 stages were trained under ZeRO-3 in bf16" in told and "keep_rounded_stages=true" in told
    assert {item.path.parent.name for item in find_waste(store.root.parent, None, False) if "rounded" in item.why} == {SET_ASIDE}
    set_aside_rounded(store, jobs, folder, keep=False)
    assert not capsys.readouterr().err


def test_kept_where_the_experiment_says_so(run: tuple[StageStore, list[Job], str], capsys: pytest.CaptureFixture[str]) -> None:
    store, jobs, folder = run
    set_aside_rounded(store, jobs, folder, keep=True)
    assert all(store.folder(job.key).exists() for job in jobs) and "warning: 3 of 4 stages" in capsys.readouterr().err.replace("\n", " ")

"""What a stage leaves for users and the exam: hf/, an ordinary model folder; and the weights that a stage starts from."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from data.adapters import Adapter
from trainer.buffers import With
from trainer.checkpoint import Checkpoint
from trainer.families import file_layout, folder_buffers, folder_weights
from trainer.store import StageStore
from trainer.weights import FragmentWeights, Weights, export
from trainer.worker_settings import Precision, WorkerSettings

Check = Callable[[Path, dict[str, Any], Callable[[], None]], None]
"""(folder, files with their hashes, what to do with a damaged one): raises where a file is not what its manifest says."""


def dtype_of(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def export_model(
    weights: Weights, model_folder: str, target: Path, dtype: torch.dtype, end_id: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Weights, config and tokenizer for users and the exam; (SHA-256 of the weights, {file: {bytes, sha256}}).

    `end_id`: the token that was trained as the end of an answer, where it may be none that the model's own files call one.
    """
    kept, constants = folder_buffers(Path(model_folder))
    kept |= {name: value.dtype for name, value in constants.items()}
    sha256, exported = export(With(weights, constants), target, dtype, file_layout(model_folder), kept)
    for file in Path(model_folder).iterdir():  # tokenizer, chat template, generation config
        if file.suffix in {".json", ".txt", ".model", ".jinja"} and ".index." not in file.name:
            shutil.copy(file, target / file.name)
    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
    config.dtype = dtype
    config.save_pretrained(target)
    if end_id is not None:
        _add_end(target / "generation_config.json", end_id, config.get_text_config().eos_token_id)
    return sha256, exported


def _add_end(path: Path, end_id: int, known: int | list[int] | None) -> None:
    """transformers' generate and `vllm serve` stop where generation_config.json says so: there the trained end must be one of the ends."""
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told = values.get("eos_token_id", known)
    ends = told if isinstance(told, list) else [told] if told is not None else []
    if end_id not in ends:
        path.write_text(json.dumps({**values, "eos_token_id": [end_id, *ends]}, indent=2) + "\n", encoding="utf-8")


def export_checkpoint(folder: Path, settings: WorkerSettings, target: Path) -> str:
    """Writes a checkpoint's weights as a model folder, for an exam in the middle of a stage; returns their SHA-256."""
    manifest = json.loads((folder / "manifest.json").read_text())
    weights: Weights = FragmentWeights(folder, manifest["shapes"], manifest["world_size"])
    if adapter := manifest["job"]["stage"].get("adapter"):
        from trainer.adapter import MergedWeights

        parent = parent_weights(settings, manifest["job"]["parent"], StageStore(Path(settings.run_folder)))
        weights = MergedWeights(settings.model_folder, Adapter.model_validate(adapter), parent, weights)
    return export_model(weights, settings.model_folder, target, dtype_of(manifest["precision"]), manifest["job"].get("end_id"))[0]


def parent_weights(settings: WorkerSettings, parent: str | None, store: StageStore, check: Check = lambda *_: None) -> Weights:
    """The fp32 weights that a stage starts from: those of the stage before, of another run's stage, or of the model folder."""
    if parent is None and settings.parent_stage is None:
        return folder_weights(Path(settings.model_folder))
    if parent is None:
        folder = Path(settings.parent_stage or "")
        manifest = json.loads((folder / "manifest.json").read_text())
    else:
        folder, manifest = store.folder(parent), store.manifest(parent)
    assert manifest is not None, f"stage {parent} is not committed, so nothing can start from it"
    weights = {
        name: facts for name, facts in manifest.get("files", {}).items() if name.startswith("weights/")
    }  # none in stages of before 2026-11-21
    check(folder, weights, partial(store.uncommit, parent) if parent else lambda: None)  # another run's is not ours to mend
    return FragmentWeights(folder / "weights", manifest["shapes"], manifest["world_size"])


def saved_weights(saved: Checkpoint, kind: str = "weight") -> FragmentWeights:
    return FragmentWeights(saved.folder, saved.manifest["shapes"], saved.manifest["world_size"], kind)

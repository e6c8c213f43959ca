"""What a stage leaves for users and the exam: hf/, an ordinary model folder; and the weights that a stage starts from."""

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from data.config import Stage
from data.ground.adapters import Adapter
from data.ground.durable import await_file
from data.rows.framing import template_of_stage, write_framing
from data.tokens import Encoder, load_tokenizer
from data.wording.templates import Wording
from trainer.export.model_shards import write_model
from trainer.jobs.worker_settings import Precision, WorkerSettings
from trainer.network.buffers import With
from trainer.network.families import file_layout, folder_buffers, folder_weights
from trainer.store.checkpoint import Checkpoint
from trainer.store.fragment_file import Fragment, sha256_of
from trainer.store.fragments import CorruptFile, Fragments, open_together
from trainer.store.group import rank_and_size
from trainer.store.local_copies import nearby
from trainer.store.shares import Spread
from trainer.store.stages import StageStore, sync, write_json
from trainer.store.weights import FragmentWeights, Weights


def dtype_of(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def export_model(
    weights: Weights,
    model_folder: str,
    target: Path,
    dtype: torch.dtype,
    template: str = "pit",
    together: bool = False,
    ranks: int = 1,
) -> tuple[str, dict[str, Any]]:
    """Weights, config and tokenizer for users and the exam, on disk; (SHA-256 of the weights, {file: {bytes, sha256}}).

    `together`: by all ranks, each its shards (trainer/export/model_shards.py); rank 0 does the rest and knows all files. `ranks`: alone, but cut as so many
    would. `template`: the wording that questions were trained in. The token that ended answers there is named as an end, beside those that the model
    had: a server that knows nothing of the wording stops there too.
    """
    kept, constants = folder_buffers(Path(model_folder))
    kept |= {name: value.dtype for name, value in constants.items()}
    sha256, exported = write_model(With(weights, constants), target, dtype, file_layout(model_folder), kept, together, ranks)
    if together and rank_and_size()[0] > 0:
        return sha256, exported
    _describe(model_folder, target, dtype, template)
    for path in sorted(target.iterdir()):
        if path.name not in exported:
            sync(path)
            exported[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    sync(target)
    return sha256, exported


def export_stage(
    mine: Iterable[Fragment],
    shapes: dict[str, list[int]],
    model_folder: str,
    target: Path,
    precision: Precision,
    template: str,
    device: torch.device,
) -> tuple[str, dict[str, Any]]:
    """The same from the fragments that the ranks of a stage have (`mine`: this one's), which nobody reads again."""
    dtype, (kept, _) = dtype_of(precision), folder_buffers(Path(model_folder))
    dtypes = {name: torch.float32 if name in kept else dtype for name in shapes}
    return export_model(Spread(mine, shapes, dtypes, device), model_folder, target, dtype, template, together=True)


def _describe(model_folder: str, target: Path, dtype: torch.dtype, template: str) -> None:
    """All but the weights."""
    for file in Path(model_folder).iterdir():  # tokenizer, chat template, generation config
        if file.suffix in {".json", ".txt", ".model", ".jinja"} and ".index." not in file.name:
            shutil.copy(file, target / file.name)
    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
    config.dtype = dtype
    tokenizer = load_tokenizer(model_folder)
    end_id = Encoder(tokenizer, Wording(template)).eos_id  # type: ignore[arg-type]
    _name_end(config, target / "generation_config.json", end_id)
    config.save_pretrained(target)
    write_framing(target, template, tokenizer, end_id)


def _name_end(config: Any, generation: Path, end_id: int) -> None:
    """Leaves both as they are where the end is known: the exam's engine takes other weights only beside the same files."""
    settings: dict[str, Any] = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    known = settings.get("eos_token_id", config.get_text_config().eos_token_id)
    ends = known if isinstance(known, list) else [] if known is None else [known]
    if end_id not in ends:
        config.eos_token_id = [end_id, *ends] if ends else end_id
        write_json(generation, {**settings, "eos_token_id": config.eos_token_id})


def export_checkpoint(folder: Path, settings: WorkerSettings, target: Path) -> str:
    """Writes a checkpoint's weights as a model folder, for an exam in the middle of a stage; returns their SHA-256. By one process: where those that made
    the checkpoint have ended before they left the model (trainer/export/paused.py), in as many files as they would have."""
    manifest = json.loads((folder / "manifest.json").read_text())
    weights: Weights = FragmentWeights(folder, manifest["shapes"], manifest["world_size"])
    if adapter := manifest["job"]["stage"].get("adapter"):
        from trainer.adapter.adapter import MergedWeights

        parent = parent_weights(settings, manifest["job"]["parent"], StageStore(Path(settings.run_folder)))
        weights = MergedWeights(settings.model_folder, Adapter.model_validate(adapter), parent, weights)
    job = manifest["job"]
    template = stage_template(settings, Stage.model_validate(job["stage"]), job["parent"])
    dtype, ranks = dtype_of(manifest["precision"]), manifest["world_size"]
    return export_model(weights, settings.model_folder, target, dtype, template, ranks=ranks)[0]


def stage_template(settings: WorkerSettings, stage: Stage, parent: str | None) -> str:
    """The wording in which a stage's model was taught questions, by it or by what came before."""
    return template_of_stage(Path(settings.run_folder) / "stages", parent, stage, Path(settings.model_folder))


def parent_weights(settings: WorkerSettings, parent: str | None, store: StageStore, together: bool = False) -> Weights:
    """The fp32 weights that a stage starts from: those of the stage before, of another run's stage, or of the model folder.

    `together`: by all ranks, which check the files first; CorruptFile where one is damaged.
    """
    copies = settings.trainer.local_copies
    if parent is None and settings.parent_stage is None:
        model, written = settings.model_folder, settings.laid_out.get(settings.model_folder)
        if written:
            await_file(Path(written) / "manifest.json")
        near = nearby(Path(written or model), settings.hashes.get(written or model, {}), copies)
        return folder_weights(Path(model), near) if written else folder_weights(near)
    if parent is None:
        folder = Path(settings.parent_stage or "")
        manifest = json.loads((folder / "manifest.json").read_text())
    else:
        folder, manifest = store.folder(parent), store.manifest(parent)
    assert manifest is not None, f"stage {parent} is not committed, so nothing can start from it"
    discard = partial(store.uncommit, parent) if parent else lambda: None  # another run's is not ours to mend
    listed = {Path(name).name: facts for name, facts in manifest.get("files", {}).items() if name.startswith("weights/")}
    weights = folder / "weights"
    if parent is None:
        weights = nearby(weights, {name: facts["sha256"] for name, facts in listed.items()}, copies)
    try:
        fragments = open_together(weights, manifest["world_size"], manifest["shapes"], listed, discard) if together else None
    except CorruptFile:
        if weights != folder / "weights":  # on every node: the next start copies again
            shutil.rmtree(weights, ignore_errors=True)
        raise
    return FragmentWeights(weights, manifest["shapes"], manifest["world_size"], fragments=fragments)


def saved_weights(saved: Checkpoint, kind: str = "weight", fragments: Fragments | None = None) -> FragmentWeights:
    return FragmentWeights(saved.folder, saved.manifest["shapes"], saved.manifest["world_size"], kind, fragments)

"""What one training process does: for each job load the parent, train the stage, write its fragments, export, commit."""

import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from data.rows import Row
from trainer.attention import attention_inputs, choose_attention, leak
from trainer.checkpoint import Checkpoint, Saver, checkpoints, clear_uncommitted, first_bad_file, rank_zero_says, set_aside
from trainer.engine import MOMENTS, DeepSpeedEngine
from trainer.flops import row_flops
from trainer.fragment_file import fragment_file, write_fragments
from trainer.freeze import exact_fragments, freeze
from trainer.guard import Guard, Stopped
from trainer.heartbeat import Heartbeat
from trainer.loop import run_stage
from trainer.model import build_model
from trainer.prepare import Job, job_dict
from trainer.reporter import Reporter
from trainer.store import StageStore
from trainer.weights import FolderWeights, FragmentWeights, Weights, export, load_into
from trainer.worker_settings import Precision, WorkerSettings

RowsOf = Callable[[Job, int, int, int], Iterator[Row]]
"""(job, rank, world size, first step) → this rank's rows; from Ray Data, or without Ray from data.rows."""


class CorruptFile(RuntimeError):
    """A checksum failed; what held the file is set aside, so that the next try does without it."""


def train_jobs(
    settings: WorkerSettings,
    jobs: list[Job],
    rows_of: RowsOf,
    resume: dict[str, int],
    node: str = "",
    leaving: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the jobs that are not committed yet, in order. Expects torch.distributed to be initialised.

    `resume`: key → step of the checkpoint to go on from (0: none); `node`: for the watchdog; `leaving`: whether a node of the group is about
    to be taken away. Returns early, with what was done saved, then or when a stop was asked for.
    """
    store = StageStore(Path(settings.run_folder))
    rank = torch.distributed.get_rank()
    beat = Heartbeat(Path(settings.run_folder), rank, node, settings.trainer.watch.start_s, leaving)
    try:
        for job in jobs:
            todo, stop = rank_zero_says((store.manifest(job.key) is None, beat.stop_requested))
            if stop:
                return
            if todo:
                _train_job(_settings_of(settings, job), job, store, rows_of, resume.get(job.key, 0), beat)
            beat.enter("wait", settings.trainer.watch.save_s)
            torch.distributed.barrier()
    except Stopped:
        return
    finally:
        beat.close()


def _settings_of(settings: WorkerSettings, job: Job) -> WorkerSettings:
    """With the model that the job's arm starts from, where that is another than the experiment's."""
    return replace(settings, model_folder=job.model_folder, parent_stage=None) if job.model_folder else settings


def _train_job(settings: WorkerSettings, job: Job, store: StageStore, rows_of: RowsOf, first_step: int, beat: Heartbeat) -> None:
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    beat.enter("load", settings.trainer.watch.start_s)
    if rank == 0:
        store.clear_partial(job.key)
        clear_uncommitted(store.folder(job.key))
    torch.distributed.barrier()
    device = torch.device("cuda", torch.cuda.current_device()) if settings.use_gpu else torch.device("cpu")
    saved = _checkpoint(store, job, first_step)
    engine, shapes, attention = _make_engine(settings, job, store, device, saved)
    config = AutoConfig.from_pretrained(settings.model_folder, trust_remote_code=False)
    reporter = Reporter(settings, job, store.folder(job.key), first_step) if rank == 0 else None
    checkpoint = settings.trainer.checkpoint
    facts = {"job": job_dict(job), "shapes": shapes, "zero_stage": settings.trainer.zero_stage, "precision": settings.precision}
    saver = Saver(store.folder(job.key), rank, world_size, facts, checkpoint.keep, checkpoint.failures)
    try:
        totals = run_stage(
            engine,
            rows_of(job, rank, world_size, first_step),
            job.stage,
            job.num_steps,
            attention,
            lambda row: row_flops(config, row["cu_seqlens"]),
            reporter.step if reporter else lambda metrics: None,
            first_step=first_step,
            before=saved.manifest["totals"] if saved else None,
            guard=Guard(engine, saver, beat, settings.trainer, job.key, rank, settings.pause_after.get(job.key), settings.explodes_at),
        )
    except Exception:  # a pause or a failure: this process may go on with another stage (tune/)
        if reporter:
            reporter.close()
        engine.close()
        raise
    beat.enter("save", settings.trainer.watch.save_s)
    saver.wait()
    for notice in saver.notices:
        beat.tell(notice)
    fragments = engine.fragments()
    if job.stage.freeze_share:
        fragments = exact_fragments(fragments, engine.module, _parent_weights(settings, job, store))
    written = {fragment_file(Path("weights"), rank).as_posix(): write_fragments(store.folder(job.key) / "weights", rank, fragments)}
    ranks: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(ranks, (written, socket.gethostname(), _device_name(device)))
    engine.close()
    if reporter:
        reporter.close()
        made = {
            "totals": {**totals, "save_blocked_s": saver.blocked_s},
            "world_size": world_size,
            "attention": attention,
            "hosts": sorted({host for _, host, _ in ranks}),
            "devices": Counter(name for *_, name in ranks),
        }
        _export_and_commit(settings, job, store, shapes, made, {k: v for part, *_ in ranks for k, v in part.items()})


def _checkpoint(store: StageStore, job: Job, first_step: int) -> Checkpoint | None:
    """The checkpoint that ends before `first_step`, its files checked by all ranks together. CorruptFile where one is damaged."""
    if not first_step:
        return None
    saved = next(c for c in checkpoints(store.folder(job.key)) if c.step == first_step)
    _refuse_damage(saved.folder, saved.manifest["files"], lambda: set_aside(saved.folder))
    return saved


def _refuse_damage(folder: Path, files: dict[str, Any], discard: Callable[[], None]) -> None:
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found: list[str | None] = [None] * world_size
    torch.distributed.all_gather_object(found, first_bad_file(folder, files, rank, world_size))
    if bad := next((reason for reason in found if reason), None):
        if rank == 0:
            discard()
        torch.distributed.barrier()
        raise CorruptFile(f"{bad}; it is not used, and training goes on from what was saved before it")


def _make_engine(
    settings: WorkerSettings, job: Job, store: StageStore, device: torch.device, saved: Checkpoint | None
) -> tuple[DeepSpeedEngine, dict[str, list[int]], str]:
    """The engine with the parent's fp32 weights, or the checkpoint's and its moments; the shapes; the attention implementation."""
    config = AutoConfig.from_pretrained(settings.model_folder, trust_remote_code=False)
    attention = choose_attention(
        settings.trainer.attention, config.model_type, getattr(config, "sliding_window", None), device, settings.precision
    )
    torch.manual_seed(settings.seed)
    zero_stage = settings.trainer.zero_stage
    if zero_stage == 3:
        import deepspeed

        from trainer.engine import deepspeed_config

        with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(settings.trainer, settings.precision)):
            module = build_model(settings.model_folder, attention, _dtype(settings.precision))
    else:
        module = build_model(settings.model_folder, attention, torch.float32).to(device)
    if settings.trainer.gradient_checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module.train()
    shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in module.named_parameters()}
    parent = _saved_weights(saved) if saved else _parent_weights(settings, job, store)
    load_into(module, parent, zero_stage)
    freeze(module, job.stage, settings.seed, job.number)
    engine = DeepSpeedEngine(module, settings.trainer, settings.precision, device)
    if settings.precision == "bf16":
        engine.set_fp32(parent.read)
    if saved:
        moments = {moment: _saved_weights(saved, moment) for moment in MOMENTS}
        engine.set_moments(lambda moment, name, start, end: moments[moment].slice(name, start, end), saved.manifest["optimizer_steps"])
    _refuse_leak(engine, attention, config.vocab_size)
    return engine, shapes, attention


def _parent_weights(settings: WorkerSettings, job: Job, store: StageStore) -> Weights:
    if job.parent is None and settings.parent_stage is None:
        return FolderWeights(Path(settings.model_folder))
    if job.parent is None:
        folder = Path(settings.parent_stage or "")
        manifest = json.loads((folder / "manifest.json").read_text())
    else:
        folder, manifest = store.folder(job.parent), store.manifest(job.parent)
    assert manifest is not None, f"stage {job.parent} is not committed, so {job.key} cannot start"
    weights = {
        name: facts for name, facts in manifest.get("files", {}).items() if name.startswith("weights/")
    }  # none in stages of before 2026-11-21
    _refuse_damage(
        folder, weights, partial(store.uncommit, job.parent) if job.parent else lambda: None
    )  # another run's is not ours to mend
    return FragmentWeights(folder / "weights", manifest["shapes"], manifest["world_size"])


def _saved_weights(saved: Checkpoint, kind: str = "weight") -> FragmentWeights:
    return FragmentWeights(saved.folder, saved.manifest["shapes"], saved.manifest["world_size"], kind)


def _refuse_leak(engine: DeepSpeedEngine, attention: str, vocab_size: int) -> None:
    """Isolation is decided by trying it, on this model, backend and device."""

    def logits_of(input_ids: Any, cu_seqlens: Any) -> torch.Tensor:
        positions = torch.cat([torch.arange(n) for n in (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()])
        with torch.no_grad():
            return engine.forward(
                input_ids=torch.as_tensor(input_ids, device=engine.device)[None],
                position_ids=positions.to(engine.device)[None],
                use_cache=False,
                **attention_inputs(attention, cu_seqlens, engine.device),
            ).logits[0]

    engine.module.eval()
    change = leak(logits_of, vocab_size)
    engine.module.train()
    if change > 1e-3:
        raise RuntimeError(
            f"packed items see each other with {attention} attention (logits move by {change:.2g}); set trainer.attention=sdpa"
        )


def _export_and_commit(
    settings: WorkerSettings,
    job: Job,
    store: StageStore,
    shapes: dict[str, list[int]],
    facts: dict[str, Any],
    files: dict[str, Any],
) -> None:
    """`facts`: what of the manifest only the process group knows, with its world_size."""
    folder = store.folder(job.key)
    dtype = _dtype(settings.precision)
    sha256, exported = export_model(
        FragmentWeights(folder / "weights", shapes, facts["world_size"]), settings.model_folder, folder / "hf", dtype
    )
    manifest = {
        "job": job_dict(job),
        "shapes": shapes,
        "weights_sha256": sha256,
        **facts,
        "zero_stage": settings.trainer.zero_stage,
        "precision": settings.precision,
        "files": {**files, **{f"hf/{name}": facts for name, facts in exported.items()}},
    }
    store.commit(job.key, manifest)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({os.cpu_count()} cores)"


def export_checkpoint(folder: Path, model_folder: str, target: Path) -> str:
    """Writes a checkpoint's weights as a model folder, for an exam in the middle of a stage; returns their SHA-256."""
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = FragmentWeights(folder, manifest["shapes"], manifest["world_size"])
    return export_model(weights, model_folder, target, _dtype(manifest["precision"]))[0]


def export_model(weights: Weights, model_folder: str, target: Path, dtype: torch.dtype) -> tuple[str, dict[str, Any]]:
    """Weights, config and tokenizer for users and the exam; (SHA-256 of the weights, {file: {bytes, sha256}})."""
    sha256, exported = export(weights, target, dtype)
    for file in Path(model_folder).iterdir():  # tokenizer, chat template, generation config
        if file.suffix in {".json", ".txt", ".model", ".jinja"} and ".index." not in file.name:
            shutil.copy(file, target / file.name)
    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
    config.dtype = dtype
    config.save_pretrained(target)
    return sha256, exported


def _dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32

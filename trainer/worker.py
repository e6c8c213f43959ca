"""What one training process does: for each job load the parent, train the stage, write its fragments, export, commit."""

import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.rows import Row
from trainer.attention import attention_in_words
from trainer.checkpoint import Checkpoint, Saver, checkpoints, clear_uncommitted, first_bad_file, rank_zero_says, set_aside
from trainer.export import dtype_of, export_model, parent_weights, stage_template
from trainer.flops import row_flops
from trainer.fragment_file import fragment_file, write_fragments
from trainer.freeze import exact_fragments
from trainer.guard import Guard, Stopped
from trainer.heartbeat import Heartbeat
from trainer.loop import run_stage
from trainer.old_stages import EXACT
from trainer.prepare import Job, job_dict
from trainer.randomness import draws_of
from trainer.reporter import Reporter
from trainer.set_up import StageEngine, make_engine
from trainer.shapes import shapes_of
from trainer.store import StageStore
from trainer.text_config import text_config
from trainer.weights import FragmentWeights, Weights
from trainer.worker_settings import WorkerSettings

RowsOf = Callable[[Job, int, int, int, bool], Iterator[Row]]
"""(job, rank, world size, first step, one item per row?) → this rank's rows; from Ray Data, or without Ray from data.rows."""


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
    goes_on_alone = saved and not (job.stage.adapter or job.stage.freeze_share)  # all weights are in the checkpoint
    parent = None if goes_on_alone else parent_weights(settings, job.parent, store, _refuse_damage)
    made = make_engine(settings, job, parent, device, saved)
    engine = made.engine
    if rank == 0:
        beat.tell_once(f"attention {made.attention}", attention_in_words(made.attention))
        beat.tell_once(f"isolation {made.isolation.one_item}", made.isolation.why)
    shapes = shapes_of(settings.trainer.shapes, device, job, world_size, made.isolation.one_item)
    if rank == 0:
        beat.tell_once(f"shapes {shapes}", shapes.in_words())
    config = text_config(Path(settings.model_folder))
    reporter = Reporter(settings, job, store.folder(job.key), first_step) if rank == 0 else None
    checkpoint = settings.trainer.checkpoint
    facts: dict[str, Any] = {
        "job": job_dict(job),
        "shapes": made.trained_shapes,
        "zero_stage": settings.trainer.zero_stage,
        "precision": settings.precision,
        **EXACT,
    }
    saver = Saver(store.folder(job.key), rank, world_size, facts, checkpoint.keep, checkpoint.failures)
    try:
        totals = run_stage(
            engine,
            shapes.rows(rows_of(job, rank, world_size, first_step, made.isolation.one_item)),
            job.stage,
            job.num_steps,
            made.attention,
            # Of frozen weights no gradient is computed: a third of the backward and forward products less.
            lambda row: row_flops(config, row["cu_seqlens"]) * (2 / 3 if job.stage.adapter else 1),
            reporter.step if reporter else lambda metrics: None,
            first_step=first_step,
            before=saved.manifest["totals"] if saved else None,
            guard=Guard(engine, saver, beat, settings.trainer, job.key, rank, settings.pause_after.get(job.key), settings.explodes_at),
            draw=draws_of(settings.seed, job.number, rank),
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
    written = _write_weights(settings, job, store, made, parent)
    ranks: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(ranks, (written, socket.gethostname(), _device_name(device)))
    engine.close()
    if reporter:
        reporter.close()
        about: dict[str, Any] = {
            "totals": {**totals, "save_blocked_s": saver.blocked_s},
            "world_size": world_size,
            "attention": made.attention,
            "one_item_rows": made.isolation.one_item,
            "hosts": sorted({host for _, host, _ in ranks}),
            "devices": Counter(name for *_, name in ranks),
        }
        _export_and_commit(settings, job, store, made.shapes, about, {k: v for part, *_ in ranks for k, v in part.items()})


def _write_weights(settings: WorkerSettings, job: Job, store: StageStore, made: StageEngine, parent: Weights | None) -> dict[str, Any]:
    """This rank's share of the stage's fp32 weights, an adapter merged in; {file: {bytes, sha256}}."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder, fragments = store.folder(job.key), made.engine.fragments()
    files: dict[str, Any] = {}
    if job.stage.freeze_share:
        assert parent is not None
        fragments = exact_fragments(fragments, made.engine.module, parent)
    if job.stage.adapter:
        from trainer.adapter import MergedWeights, merged_fragments, write_adapter

        assert parent is not None
        apart = folder / "adapter-fragments"
        write_fragments(apart, rank, fragments)
        torch.distributed.barrier()
        weights = MergedWeights(settings.model_folder, job.stage.adapter, parent, FragmentWeights(apart, made.trained_shapes, world_size))
        fragments = merged_fragments(weights, rank, world_size)
        if rank == 0:
            files = {f"adapter/{name}": facts for name, facts in write_adapter(weights, folder / "adapter").items()}
    files[fragment_file(Path("weights"), rank).as_posix()] = write_fragments(folder / "weights", rank, fragments)
    if job.stage.adapter:
        torch.distributed.barrier()  # all have read
        if rank == 0:
            shutil.rmtree(apart)
    return files


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
    weights = FragmentWeights(folder / "weights", shapes, facts["world_size"])
    template = stage_template(settings, job.stage, job.parent)
    sha256, exported = export_model(weights, settings.model_folder, folder / "hf", dtype_of(settings.precision), template)
    manifest = {
        "job": job_dict(job),
        "shapes": shapes,
        "weights_sha256": sha256,
        **facts,
        "zero_stage": settings.trainer.zero_stage,
        "precision": settings.precision,
        **EXACT,
        "files": {**files, **{f"hf/{name}": facts for name, facts in exported.items()}},
    }
    store.commit(job.key, manifest)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({os.cpu_count()} cores)"

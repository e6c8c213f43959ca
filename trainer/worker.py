"""What one training process does: for each job load the parent, train the stage, write its fragments, export, commit."""

import os
import shutil
import socket
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.rows.flat_rows import Row
from trainer.export.export import export_stage, parent_weights, stage_template
from trainer.export.paused import leave_paused
from trainer.jobs.old_stages import EXACT
from trainer.jobs.prepare import Job, job_dict
from trainer.jobs.shapes import shapes_of
from trainer.jobs.worker_settings import WorkerSettings
from trainer.kernels.attention import attention_in_words
from trainer.network.flops import row_flops
from trainer.network.text_config import text_config
from trainer.step.freeze import exact_fragments
from trainer.step.loop import run_stage
from trainer.step.randomness import draws_of
from trainer.step.reporter import Reporter
from trainer.step.set_up import StageEngine, make_engine, with_compiled_layers
from trainer.store.checkpoint import (
    Checkpoint,
    Saver,
    await_committed,
    await_model,
    checkpoints,
    clear_uncommitted,
    rank_zero_says,
    set_aside,
)
from trainer.store.fragment_file import Fragment, FragmentBuffer, filled, fragment_file, write_fragments
from trainer.store.fragments import CorruptFile as CorruptFile
from trainer.store.fragments import Fragments, open_together
from trainer.store.mirror_rank import MirrorRank
from trainer.store.stages import StageStore
from trainer.store.storage import give_groups
from trainer.store.weights import FragmentWeights, Weights
from trainer.teaching.ewc import Pull, ensure_importance
from trainer.teaching.progress import Progress
from trainer.teaching.teacher import ensure_store, with_teacher
from trainer.watch.guard import Guard, Stopped
from trainer.watch.heap import give_back_freed_memory, keep_freed_memory
from trainer.watch.heartbeat import Heartbeat, Sending
from trainer.watch.limits import Limits

RowsOf = Callable[[Job, int, int, int, bool], Iterator[Row]]
"""(job, rank, world size, first step, one item per row?) → this rank's rows; from Ray Data, or without Ray from data.rows.flat_rows."""


def train_jobs(
    settings: WorkerSettings,
    jobs: list[Job],
    rows_of: RowsOf,
    resume: dict[str, int],
    node: str = "",
    leaving: Callable[[], bool] = lambda: False,
    line: Sending | None = None,
) -> None:
    """Trains the jobs that are not committed yet, in order. Expects torch.distributed to be initialised.

    `resume`: key → step of the checkpoint to go on from (0: none); `node`: for the watchdog; `leaving`: whether a node of the group is about
    to be taken away; `line`: how heartbeats get to the driver, beside files. Returns early, with what was done saved, then or when a stop was asked for.
    """
    if not settings.use_gpu:
        keep_freed_memory()
    store = StageStore(Path(settings.run_folder))
    rank = torch.distributed.get_rank()
    beat = Heartbeat(Path(settings.run_folder), rank, node, settings.trainer.watch.start_s, leaving, line)
    place = settings.trainer.checkpoint.mirror
    mirror = MirrorRank(place, Path(settings.run_folder), rank, torch.distributed.get_world_size()) if place else None
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
        if mirror:
            mirror.close()
        beat.close()
        if not settings.use_gpu:
            give_back_freed_memory()


def _settings_of(settings: WorkerSettings, job: Job) -> WorkerSettings:
    """With the model that the job's arm starts from, where that is another than the experiment's."""
    return replace(settings, model_folder=job.model_folder, parent_stage=None) if job.model_folder else settings


def _train_job(settings: WorkerSettings, job: Job, store: StageStore, rows_of: RowsOf, first_step: int, beat: Heartbeat) -> None:
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    beat.enter("load", settings.trainer.watch.start_s)
    _await_what_is_needed(settings, store, job, first_step)
    limits = Limits(settings, store, job, world_size, first_step)
    beat.enter("load", limits.load_s)
    if rank == 0:
        for line in limits.in_words():
            beat.tell(line)
    if rank == 0:
        store.clear_partial(job.key)
        clear_uncommitted(store.folder(job.key))
    torch.distributed.barrier()
    device = torch.device("cuda", torch.cuda.current_device()) if settings.use_gpu else torch.device("cpu")
    start = partial(parent_weights, settings, job.parent, store, together=True)
    progress = Progress(beat, limits.load_s, job.label, rank == 0)
    taught = ensure_store(settings, job, start, device, progress)
    ensure_importance(settings, job, start, device, progress)
    with limits.loading(beat):
        saved, fragments = _checkpoint(store, job, first_step)
        goes_on_alone = saved and not (job.stage.adapter or job.stage.freeze_share or job.important)  # all weights are in the checkpoint
        parent = None if goes_on_alone else start()
        made = make_engine(settings, job, parent, device, saved, fragments)
        if job.important and parent is not None:
            made.engine.pull = Pull(made.engine, job.important, parent)
    lines = limits.know(made.shapes)
    for line in lines if rank == 0 else []:
        beat.tell(line)
    give_groups(limits.longest_s)
    engine = made.engine
    if rank == 0:
        beat.tell_once(f"attention {made.attention}", attention_in_words(made.attention))
        beat.tell_once(f"isolation {made.isolation.one_item}", made.isolation.why)
    shapes = shapes_of(settings.trainer.shapes, device, job, world_size, made.isolation.one_item)
    if rank == 0:
        beat.tell_once(f"shapes {shapes}", shapes.in_words())
    made = with_compiled_layers(made, settings, shapes.static is not None, lambda line: beat.tell_once(line, line) if rank == 0 else None)
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
    saver.on_commit = lambda folder: beat.committed(f"stages/{job.key}/checkpoints/{folder.name}/manifest.json")
    kept = weakref.ref(saver)  # a beat must not keep the saver's copy of weights and moments
    beat.saving = lambda: bool((alive := kept()) and alive.busy)
    try:
        totals = run_stage(
            engine,
            shapes.rows(with_teacher(rows_of(job, rank, world_size, first_step, made.isolation.one_item), job.lessons)),
            job.stage,
            job.num_steps,
            made.attention,
            # Of frozen weights no gradient is computed: a third of the backward and forward products less.
            lambda row: row_flops(config, row["cu_seqlens"]) * (2 / 3 if job.stage.adapter else 1),
            reporter.step if reporter else lambda metrics: None,
            first_step=first_step,
            before=saved.manifest["totals"] if saved else None,
            guard=Guard(
                engine,
                saver,
                beat,
                limits.trainer,
                job.key,
                rank,
                settings.pause_after.get(job.key),
                settings.explodes_at,
                made.compiled is not None,
            ),
            draw=draws_of(settings.seed, job.number, rank),
        )
    except Exception as error:  # a pause or a failure: this process may go on with another stage (tune/)
        if reporter:
            reporter.close()
        if isinstance(error, Stopped) and settings.paused_to and error.steps == settings.pause_after.get(job.key):
            with limits.saving(beat), _last_fragments(settings, job, store.folder(job.key), made, parent) as (last, _):
                leave_paused(filled(last).fragments(), made.shapes, settings, job, error.steps, device)
        made.close()
        raise
    beat.enter("save", limits.save_s)
    with limits.saving(beat):
        saver.wait()
        for notice in saver.notices:
            beat.tell(notice)
        blocked_s = saver.blocked_s
        del saver  # and its copy of weights and moments
        written, weights = _write_weights(settings, job, store, made, parent)
        ranks: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(ranks, (written, socket.gethostname(), _device_name(device)))
        made.close()
        template = stage_template(settings, job.stage, job.parent)
        hf = store.folder(job.key) / "hf"
        sha256, exported = export_stage(weights.fragments(), made.shapes, settings.model_folder, hf, settings.precision, template, device)
    if reporter:
        reporter.close()
        about: dict[str, Any] = {
            "totals": {**totals, "save_blocked_s": blocked_s},
            "weights_sha256": sha256,
            "world_size": world_size,
            "attention": made.attention,
            "one_item_rows": made.isolation.one_item,
            **({"teacher": taught} if taught else {}),
            "hosts": sorted({host for _, host, _ in ranks}),
            "devices": Counter(name for *_, name in ranks),
        }
        files = {name: facts for part, *_ in ranks for name, facts in part.items()} | {
            f"hf/{name}": facts for name, facts in exported.items()
        }
        _commit(settings, job, store, made.shapes, about, files)
        beat.committed(f"stages/{job.key}/manifest.json")


def _await_what_is_needed(settings: WorkerSettings, store: StageStore, job: Job, first_step: int) -> None:
    """What others have written, maybe on another node a moment ago (data/ground/durable.py)."""
    await_model(Path(settings.model_folder))
    if job.parent:
        await_committed(store.folder(job.parent), "weights/")
    if first_step:
        await_committed(store.folder(job.key) / "checkpoints" / f"step-{first_step:08d}")


def _write_weights(
    settings: WorkerSettings, job: Job, store: StageStore, made: StageEngine, parent: Weights | None
) -> tuple[dict[str, Any], FragmentBuffer]:
    """This rank's share of the stage's fp32 weights, an adapter merged in; ({file: {bytes, sha256}}, the same weights in memory)."""
    rank, folder = torch.distributed.get_rank(), store.folder(job.key)
    files: dict[str, Any] = {}
    with _last_fragments(settings, job, folder, made, parent) as (fragments, merged):
        if merged and rank == 0:
            from trainer.adapter.adapter import write_adapter

            files = {f"adapter/{name}": facts for name, facts in write_adapter(merged, folder / "adapter").items()}
        weights = filled(fragments)
        files[fragment_file(Path("weights"), rank).as_posix()] = weights.write(fragment_file(folder / "weights", rank))
    return files, weights


@contextmanager
def _last_fragments(
    settings: WorkerSettings, job: Job, folder: Path, made: StageEngine, parent: Weights | None
) -> Iterator[tuple[Iterable[Fragment], Any]]:
    """(this rank's share of the stage's fp32 weights, an adapter merged in; the merged weights where there is one). By all ranks."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    fragments: Iterable[Fragment] = made.engine.fragments()
    if job.stage.freeze_share:
        assert parent is not None
        fragments = exact_fragments(fragments, made.engine.module, parent)
    if not job.stage.adapter:
        yield fragments, None
        return
    from trainer.adapter.adapter import MergedWeights, merged_fragments

    assert parent is not None
    apart = folder / "adapter-fragments"
    write_fragments(apart, rank, fragments)
    torch.distributed.barrier()
    together = open_together(apart, world_size, made.trained_shapes, {}, lambda: None)
    trained = FragmentWeights(apart, made.trained_shapes, world_size, fragments=together)
    merged = MergedWeights(settings.model_folder, job.stage.adapter, parent, trained)
    yield merged_fragments(merged, rank, world_size), merged
    together.release()
    torch.distributed.barrier()  # all have read
    if rank == 0:
        # Shared storage may keep what another node still has open; clear_uncommitted comes by again.
        shutil.rmtree(apart, ignore_errors=True)


def _checkpoint(store: StageStore, job: Job, first_step: int) -> tuple[Checkpoint | None, Fragments | None]:
    """The checkpoint that ends before `first_step`, its files checked by all ranks together. CorruptFile where one is damaged."""
    if not first_step:
        return None, None
    saved = next(c for c in checkpoints(store.folder(job.key)) if c.step == first_step)
    manifest = saved.manifest
    discard = partial(set_aside, saved.folder)
    return saved, open_together(saved.folder, manifest["world_size"], manifest["shapes"], manifest["files"], discard)


def _commit(
    settings: WorkerSettings,
    job: Job,
    store: StageStore,
    shapes: dict[str, list[int]],
    facts: dict[str, Any],
    files: dict[str, Any],
) -> None:
    """`facts`: what of the manifest only the process group knows."""
    manifest = {
        "job": job_dict(job),
        "shapes": shapes,
        **facts,
        "zero_stage": settings.trainer.zero_stage,
        "precision": settings.precision,
        "model_folder": os.path.relpath(settings.model_folder, store.folder(job.key).resolve()),
        **EXACT,
        "files": files,
    }
    store.commit(job.key, manifest)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({os.cpu_count()} cores)"

"""The model as it is at a pause in the midst of a stage, where a search looks at a trial: left by all ranks from what they hold, as a stage's end is."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from trainer.export.export import export_stage, stage_template
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.store.checkpoint import first_bad_file
from trainer.store.fragment_file import Fragment
from trainer.store.group import rank_and_size
from trainer.store.stages import write_json


def leave_paused(
    mine: Iterable[Fragment], shapes: dict[str, list[int]], settings: WorkerSettings, job: Job, step: int, device: torch.device
) -> None:
    """By all ranks: settings.paused_to, an ordinary model folder, and beside it what it is. `mine`: this rank's fragments of all weights."""
    assert settings.paused_to is not None
    target, rank = Path(settings.paused_to), rank_and_size()[0]
    if rank == 0:
        forget_paused(target)
    torch.distributed.barrier()
    template = stage_template(settings, job.stage, job.parent)
    sha256, files = export_stage(mine, shapes, settings.model_folder, target, settings.precision, template, device)
    if rank == 0:
        write_json(_facts(target), {"key": job.key, "step": step, "weights_sha256": sha256, "files": files})


def paused_weights(target: Path, key: str, step: int) -> str | None:
    """SHA-256 of the weights that were left there after so many steps of this stage, every file as it was written; else None."""
    try:
        facts = json.loads(_facts(target).read_text())
    except (OSError, ValueError):
        return None
    if (facts["key"], facts["step"]) != (key, step) or first_bad_file(target, facts["files"]):
        return None
    return str(facts["weights_sha256"])


def forget_paused(target: Path) -> None:
    _facts(target).unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)


def _facts(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")

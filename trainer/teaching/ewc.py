"""Elastic weight consolidation (EWC, arXiv 1612.00796): weights that what was known before needs stay near the stage's start (`anchor.ewc`).

How much each weight matters is the mean of squared gradients of the stage's replay items at its start, four items a square: AdamW's second moment after steps at rate
0, as the engine makes it under any ZeRO stage (that it is close to the Fisher information's diagonal: arXiv 2507.18807). It is divided by its mean over all weights.
Then before every step w ← (w + c · start) / (1 + c) with c = rate · ewc · importance: the penalty ½ · ewc · importance · (w − start)² taken implicitly and apart
from AdamW's moments, as weight decay is; so no importance, however large, can overshoot.

    importance/<key>/rank-….safetensors    AdamW's second moments, as a checkpoint has them
                     manifest.json         their mean, hashes; put in place last

It is measured in the precision of training, so that it needs no more room than that; holding costs 8 bytes more a weight of a rank's share, where its fp32 weights lie.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.rows.flat_rows import Reading, step_rows
from data.rows.important import Important
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.step.engine import DeepSpeedEngine
from trainer.step.set_up import make_engine
from trainer.step.step import optimiser_step
from trainer.store.checkpoint import await_committed, is_whole, rank_zero_says
from trainer.store.fragment_file import fragment_file, write_fragments
from trainer.store.fragments import open_together
from trainer.store.stages import write_json
from trainer.store.weights import FragmentWeights, Weights
from trainer.teaching.progress import Progress
from trainer.watch.guard import Stopped

_MOMENT = "exp_avg_sq"
_BETAS = (0.0, 0.9999)
"""Of the second moment: of a thousand steps all count alike, to a tenth."""


def ensure_importance(settings: WorkerSettings, job: Job, parent: Callable[[], Weights], device: torch.device, progress: Progress) -> None:
    """Measures how much each weight matters, unless that is there, sound. All ranks together. Stopped where that is asked for: then it begins anew."""
    if job.important is None:
        return
    important, folder = job.important, Path(job.important.folder)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if rank_zero_says(is_whole(folder) if rank == 0 else None):
        await_committed(folder)
        return
    plan, store = important.plan(), important.store()
    trainer = settings.trainer.model_copy(update={"betas": _BETAS, "clip": 0.0, "weight_decay": 0.0, "cuda_graphs": False, "fp8": "off"})
    stage = job.stage.model_copy(update={"freeze_share": 0.0})
    reads = replace(job, stage=stage, longest_item=important.longest, row_tokens=min(job.capacity, important.tokens_at_once))
    made = make_engine(replace(settings, trainer=trainer), reads, parent(), device, None)
    try:
        rows = partial(step_rows, plan, store, rank=rank, world_size=world_size, capacity=job.capacity, loss="example", longest=job.longest)
        for step in range(plan.num_steps):
            micro_rows = rows(step=step, reading=Reading(important.wording), one_item=made.isolation.one_item)
            optimiser_step(made.engine, micro_rows, 0.0, made.attention)
            progress.gets_on("how much each weight matters, step", step + 1, plan.num_steps)
            if step + 1 < plan.num_steps and rank_zero_says(progress.stop_requested):
                raise Stopped(0)
        squares = [fragment for fragment in made.engine.state_fragments() if fragment[0].startswith(f"{_MOMENT}/")]
        sums = [sum(float(values.double().sum()) for *_, values in squares), sum(values.numel() for *_, values in squares)]
        total = torch.tensor(sums, dtype=torch.float64, device=device)  # fp32 cannot count the weights of a real model
        torch.distributed.all_reduce(total)
        facts = {fragment_file(Path(), rank).name: write_fragments(folder, rank, squares)}
        told: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(told, facts)
        if rank == 0:
            files = {name: one for part in told for name, one in part.items()}
            mean = float(total[0] / total[1])
            write_json(
                folder / "manifest.json",
                {"world_size": world_size, "shapes": made.trained_shapes, "mean": mean, "items": important.items, "files": files},
            )
    finally:
        made.close()
    torch.distributed.barrier()
    await_committed(folder)


class Pull:
    """Draws a rank's share of the weights towards the stage's start."""

    def __init__(self, engine: DeepSpeedEngine, important: Important, start: Weights) -> None:
        folder = Path(important.folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        discard = (folder / "manifest.json").unlink
        fragments = open_together(folder, manifest["world_size"], manifest["shapes"], manifest["files"], discard)
        importance = FragmentWeights(folder, manifest["shapes"], manifest["world_size"], _MOMENT, fragments)
        strength = important.weight / max(manifest["mean"], 1e-30)
        self._parts: list[tuple[Callable[[], Tensor], Tensor, Tensor]] = []
        for name, begin, end, weight in engine.shares_of_trained():
            there = weight().device  # host memory, where the optimiser's states are offloaded
            matters = importance.slice(name, begin, end) * strength
            self._parts.append((weight, start.slice(name, begin, end).float().to(there), matters.to(there)))
        fragments.release()

    @torch.no_grad()
    def __call__(self, rate: float) -> None:
        for weight, start, matters in self._parts:
            pull = matters * rate
            weight().lerp_(start, pull / (1 + pull))

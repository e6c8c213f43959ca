"""The steps of tests/numerics/steps.py with adapters, whole and resumed after two, made as the trainer makes them: run by test_adapter.py."""

import json
from pathlib import Path
from typing import Any

import torch

from data.adapters import Adapter
from tests.numerics import resume, steps

SEED, NUMBER = 3, 1
ADAPTERS = {
    "lora": Adapter(r=4, alpha=16),
    "dora": Adapter(r=4, use_dora=True, bias="all"),
    "whole": Adapter(r=4, embeddings=True),
    "loha": Adapter(type="loha", r=4),
}
CASES = [(stage, "fp32", "lora") for stage in (0, 1, 2, 3)] + [(2, "bf16", "lora"), (3, "bf16", "lora")]
CASES += [(2, "fp32", "dora"), (2, "fp32", "whole"), (1, "fp32", "loha")]
RESUMED = [(2, "fp32", "lora"), (3, "fp32", "lora"), (2, "bf16", "lora")]


def model_folder(out: Path) -> Path:
    return out / "model"


def make(out: Path, case: tuple[int, str, str], saved: Any):  # type: ignore[no-untyped-def]
    """(StageEngine, the weights it starts from)."""
    from trainer.prepare import Job
    from trainer.set_up import make_engine
    from trainer.weights import FolderWeights
    from trainer.worker_settings import WorkerSettings

    zero_stage, precision, name = case
    config = steps.CONFIG.model_copy(update={"zero_stage": zero_stage})
    settings = WorkerSettings(str(out), str(model_folder(out)), config, precision, SEED, False)  # type: ignore[arg-type]
    stage = steps.STAGE.model_copy(update={"adapter": ADAPTERS[name]})
    job = Job("key", None, "made", stage, steps.NUM_STEPS, "", "", steps.CAPACITY, steps.CAPACITY, NUMBER)
    parent = FolderWeights(model_folder(out))
    return make_engine(settings, job, parent, torch.device("cpu"), saved), parent


def finish(out: Path, folder: Path, case: tuple[int, str, str], made: Any, parent: Any, rank: int, world_size: int) -> None:
    """What trainer/worker.py does at a stage's end."""
    from trainer.adapter import MergedWeights, merged_fragments
    from trainer.fragment_file import write_fragments
    from trainer.weights import FragmentWeights

    write_fragments(folder / "adapter", rank, made.engine.fragments())
    torch.distributed.barrier()
    trained = FragmentWeights(folder / "adapter", made.trained_shapes, world_size)
    weights = MergedWeights(str(model_folder(out)), ADAPTERS[case[2]], parent, trained)
    write_fragments(folder / "merged", rank, merged_fragments(weights, rank, world_size))
    made.engine.close()
    torch.distributed.barrier()


def main(out: Path, world_size: int, rank: int) -> None:
    from trainer.checkpoint import Checkpoint
    from trainer.fragment_file import write_fragments

    for case in CASES:
        folder = out / "-".join(map(str, case))
        made, parent = make(out, case, None)
        losses = resume.run(made.engine, 0, resume.SAVED_AT, rank, world_size)
        write_fragments(folder / "saved", rank, made.engine.state_fragments())
        taken = made.engine.optimizer_steps()
        losses += resume.run(made.engine, resume.SAVED_AT, steps.NUM_STEPS, rank, world_size)
        if rank == 0:
            facts = {"losses": [float.fromhex(loss) for loss in losses], "shapes": made.trained_shapes}
            (folder / "result.json").write_text(json.dumps(facts))
        finish(out, folder / "ended", case, made, parent, rank, world_size)
        if case not in RESUMED:
            continue
        manifest = {"shapes": made.trained_shapes, "world_size": world_size, "optimizer_steps": taken}
        made, parent = make(out, case, Checkpoint(folder / "saved", resume.SAVED_AT, manifest))
        resume.run(made.engine, resume.SAVED_AT, steps.NUM_STEPS, rank, world_size)
        finish(out, folder / "resumed", case, made, parent, rank, world_size)

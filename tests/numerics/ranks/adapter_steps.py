"""The steps of tests/numerics/ranks/steps.py with adapters, whole and resumed after two, made as the trainer makes them: run by test_adapter.py."""

import json
from pathlib import Path
from typing import Any

import torch

from data.ground.adapters import Adapter
from tests.numerics.ranks import resume, steps

SEED, NUMBER = 3, 1
Case = tuple[int, str, str]
ADAPTERS = {
    "lora": Adapter(r=4, alpha=16),
    "dora": Adapter(r=4, use_dora=True, bias="all"),
    "whole": Adapter(r=4, embeddings=True),
    "loha": Adapter(type="loha", r=4),
    "dropout": Adapter(r=4, alpha=16, dropout=0.3),
    "attention": Adapter(r=4, alpha=16),  # on a model whose own config drops
}
CASES: list[Case] = [(stage, "fp32", "lora") for stage in (0, 1, 2, 3)] + [(2, "bf16", "lora"), (3, "bf16", "lora")]
CASES += [(2, "fp32", "dora"), (2, "fp32", "whole"), (3, "fp32", "loha")]
CASES += [(3, "fp32", "dora"), (3, "bf16", "dora"), (3, "fp32", "dropout"), (2, "fp32", "attention")]
DROPPING = [case for case in CASES if case[2] in ("dropout", "attention")]
RESUMED: list[Case] = [(2, "fp32", "lora"), (2, "bf16", "lora"), (3, "bf16", "dora"), *DROPPING]


def model_folder(out: Path, name: str) -> Path:
    return out / ("model-that-drops" if name == "attention" else "model")


def save_models(out: Path) -> None:
    for name, dropout in (("lora", 0.0), ("attention", 0.1)):
        model: Any = steps.made_model(attention_bias=True, attention_dropout=dropout)
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):  # made as zeros, which a lost start would be too
                parameter.data.normal_(0.0, 0.3)
        model.save_pretrained(model_folder(out, name))


def make(out: Path, case: Case, saved: Any):  # type: ignore[no-untyped-def]
    """(StageEngine, the weights it starts from)."""
    from trainer.jobs.prepare import Job
    from trainer.jobs.worker_settings import WorkerSettings
    from trainer.step.set_up import make_engine
    from trainer.store.weights import FolderWeights

    zero_stage, precision, name = case
    config = steps.CONFIG.model_copy(update={"zero_stage": zero_stage})
    settings = WorkerSettings(str(out), str(model_folder(out, name)), config, precision, SEED, False)  # type: ignore[arg-type]
    stage = steps.STAGE.model_copy(update={"adapter": ADAPTERS[name]})
    job = Job("key", None, "made", stage, steps.NUM_STEPS, "", "", steps.CAPACITY, steps.CAPACITY, NUMBER)
    parent = FolderWeights(model_folder(out, name))
    return make_engine(settings, job, parent, torch.device("cpu"), saved), parent


def finish(out: Path, folder: Path, case: Case, made: Any, parent: Any, rank: int, world_size: int) -> None:
    """What trainer/worker.py does at a stage's end."""
    from trainer.adapter.adapter import MergedWeights, merged_fragments
    from trainer.store.fragment_file import write_fragments
    from trainer.store.weights import FragmentWeights

    write_fragments(folder / "adapter", rank, made.engine.fragments())
    torch.distributed.barrier()
    trained = FragmentWeights(folder / "adapter", made.trained_shapes, world_size)
    weights = MergedWeights(str(model_folder(out, case[2])), ADAPTERS[case[2]], parent, trained)
    write_fragments(folder / "merged", rank, merged_fragments(weights, rank, world_size))
    made.engine.close()
    torch.distributed.barrier()


def partition_everything() -> None:
    """DeepSpeed keeps parameters of less than 100,000 numbers whole; a real model's are larger."""
    import trainer.step.engine
    import trainer.step.set_up

    usual = trainer.step.engine.deepspeed_config

    def smallest(*settings: Any) -> dict[str, Any]:
        config = usual(*settings)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    trainer.step.engine.deepspeed_config = trainer.step.set_up.deepspeed_config = smallest  # type: ignore[attr-defined]


def main(out: Path, world_size: int, rank: int) -> None:
    from trainer.step.randomness import draws_of
    from trainer.store.checkpoint import Checkpoint
    from trainer.store.fragment_file import write_fragments

    partition_everything()
    draw = draws_of(SEED, NUMBER, rank)
    for case in CASES:
        folder = out / "-".join(map(str, case))
        made, parent = make(out, case, None)
        write_fragments(folder / "start", rank, made.engine.fragments())
        losses = resume.run(made.engine, 0, resume.SAVED_AT, rank, world_size, draw)
        write_fragments(folder / "saved", rank, made.engine.state_fragments())
        taken = made.engine.optimizer_steps()
        losses += resume.run(made.engine, resume.SAVED_AT, steps.NUM_STEPS, rank, world_size, draw)
        facts: dict[str, Any] = {"losses": [float.fromhex(loss) for loss in losses], "shapes": made.trained_shapes}
        finish(out, folder / "ended", case, made, parent, rank, world_size)
        manifest = {"shapes": made.trained_shapes, "world_size": world_size, "optimizer_steps": taken}
        for part, draws in (("resumed", draw), ("undrawn", lambda row: None)):
            if case in (RESUMED if part == "resumed" else DROPPING):
                made, parent = make(out, case, Checkpoint(folder / "saved", resume.SAVED_AT, manifest))
                resume.run(made.engine, resume.SAVED_AT, steps.NUM_STEPS, rank, world_size, draws)
                finish(out, folder / part, case, made, parent, rank, world_size)
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(facts))

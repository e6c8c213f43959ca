"""What engines hold, counted tensor by tensor, as the trainer makes them, and what is left of them when they are closed: run by test_held.py."""

import gc
import json
import time
from pathlib import Path
from typing import Any

import torch

from data.ground.adapters import Adapter
from tests.helpers.networks import sizes
from tests.numerics.ranks import steps
from tests.numerics.ranks.adapter_steps import SEED

RANK = 4
CASES = [(0, "fp32", "")] + [(stage, precision, "") for stage in (1, 2, 3) for precision in ("fp32", "bf16")]
CASES += [(stage, "bf16", kind) for stage in (1, 2, 3) for kind in ("offload", "adapter")]
ALONE = [(1, "bf16", ""), (3, "bf16", "")]
"""Of one worker."""


def name_of(zero_stage: int, precision: str, kind: str) -> str:
    return f"zero{zero_stage}-{precision}{kind and '-'}{kind}"


def made_model() -> Any:
    """Its tables and feed-forward matrices are above the 100,000 elements under which ZeRO-3 does not cut a parameter."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes(128, 1024, layers=2, heads=4, key_heads=2), vocab_size=1024, max_position_embeddings=128, tie_word_embeddings=False
    )
    return AutoModelForCausalLM.from_config(config)


def make(out: Path, zero_stage: int, precision: str, kind: str) -> Any:
    from trainer.jobs.prepare import Job
    from trainer.jobs.worker_settings import WorkerSettings
    from trainer.step.set_up import make_engine
    from trainer.store.weights import FolderWeights

    config = steps.CONFIG.model_copy(update={"zero_stage": zero_stage, "offload_optimizer": kind == "offload"})
    stage = steps.STAGE.model_copy(update={"adapter": Adapter(r=RANK)} if kind == "adapter" else {})
    settings = WorkerSettings(str(out), str(out / "model"), config, precision, SEED, False)  # type: ignore[arg-type]
    job = Job("key", None, "made", stage, steps.NUM_STEPS, "", "", steps.CAPACITY, steps.CAPACITY, 0)
    return make_engine(settings, job, FolderWeights(out / "model"), torch.device("cpu"), None)


def storages() -> dict[int, int]:
    """Address → bytes of everything that a tensor of this process looks into."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu"]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def counted(out: Path, case: tuple[int, str, str], rank: int, world_size: int) -> dict[str, Any]:
    """Bytes when the gradients are there and the moments are, i.e. before a second step; and what is left when all is closed."""
    from data.rows.flat_rows import step_rows
    from trainer.step.step import optimiser_step, row_loss

    before = storages()
    made = make(out, *case)
    rows = step_rows(steps.made_plan(), steps.made_store(), 0, rank, world_size, steps.CAPACITY, "example")
    losses, norms = zip(*(optimiser_step(made.engine, rows[:2], 1e-3, made.attention) for _ in range(2)), strict=True)
    made.engine.backward(row_loss(made.engine, rows[0], made.attention))
    torch.distributed.barrier()
    time.sleep(0.3)  # gloo's threads hold what they have reduced for a moment longer than the step, on busy cores for long
    gc.collect()
    held = {key: size for key, size in storages().items() if key not in before}
    buckets = [size for size in held.values() if size >= 2 * 500_000_000]
    small = [p.numel() for p in made.engine.module.parameters() if getattr(p, "ds_persist", False)]
    made.engine.close()
    left = sum(size for key, size in storages().items() if key not in before)
    taken = [[float(loss).hex() for loss in losses], [norm.hex() for norm in norms]]
    return {"held": sum(held.values()) - sum(buckets), "small": sum(small), "left": left, "steps": taken}


def main(out: Path, world_size: int, rank: int) -> None:
    from trainer.step import engine

    if rank == 0:
        made_model().save_pretrained(out / "model")
    torch.distributed.barrier()
    facts = {}
    for case in CASES if world_size > 1 else ALONE:
        facts[name_of(*case)] = counted(out, case, rank, world_size)
    if world_size > 1:  # one process trains without DeepSpeed
        plain = engine.deepspeed_config
        without = lambda *arguments: {**plain(*arguments), "bf16": {"enabled": True}}  # noqa: E731
        engine.deepspeed_config = without  # type: ignore[assignment]
        facts["twice"] = counted(out, (1, "bf16", ""), rank, world_size)
    if rank == 0:
        (out / "facts.json").write_text(json.dumps(facts))

"""The steps of tests/numerics/ranks/steps.py with the optimiser's states in host memory, beside the same without."""

import json
from pathlib import Path

import torch

from tests.numerics.ranks.steps import CONFIG, made_model, run_steps

CASES = [(stage, precision) for precision in ("fp32", "bf16") for stage in (1, 2, 3)]


def main(out: Path, world_size: int, rank: int) -> None:
    from trainer.step.engine import DeepSpeedEngine
    from trainer.store.fragment_file import write_fragments

    for zero_stage, precision in CASES:
        for offload in (False, True):
            name = f"zero{zero_stage}-{precision}-{'host' if offload else 'device'}"
            model = made_model()
            start = {key: value.detach().clone() for key, value in model.named_parameters()}
            config = CONFIG.model_copy(update={"zero_stage": zero_stage, "offload_optimizer": offload})
            engine = DeepSpeedEngine(model, config, precision, torch.device("cpu"))
            if precision == "bf16":
                engine.set_fp32(start.__getitem__)
            losses, norms = run_steps(engine, rank, world_size)
            totals = torch.stack(losses).float()
            torch.distributed.all_reduce(totals)
            write_fragments(out / name, rank, engine.state_fragments())
            if rank == 0:
                (out / f"{name}.json").write_text(
                    json.dumps({"losses": totals.tolist(), "norms": norms, "steps": engine.optimizer_steps()})
                )
            engine.close()
            torch.distributed.barrier()

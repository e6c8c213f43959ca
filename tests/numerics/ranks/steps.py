"""A few optimiser steps on uneven made items, by DeepSpeed in a gloo process group or by plain torch: run by the tests below."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.config import Mix, Stage
from data.curriculum.plan import Plan
from data.rows.flat_rows import Row, step_rows
from data.rows.static_rows import static_shapes
from data.rows.token_store import TokenStore
from tests.helpers.networks import sizes
from trainer.config import TrainerConfig
from trainer.schedule import learning_rate
from trainer.step.step import Engine, optimiser_step

STAGE = Stage(mix=Mix(train_documents=1), epochs=1, batch_items=12, rate=3e-3)
CONFIG = TrainerConfig(clip=0.5)  # small enough that every step is clipped
CAPACITY = 48
NUM_STEPS = 4
VOCAB = 64


def made_store() -> TokenStore:
    """40 items of 5 to 60 tokens (so some are split over rows), loss from a random token on."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(5, 60, 40)
    return TokenStore(
        tokens=rng.integers(3, VOCAB, lengths.sum()).astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        loss_start=rng.integers(1, lengths - 1).astype(np.int32),
        sha256="",
    )


def made_plan() -> Plan:
    """Steps of 12, 9, 12 and 7 items: the number of micro-steps differs from step to step."""
    return Plan(np.random.default_rng(4).permutation(40), np.array([0, 12, 21, 33, 40]), "")


def made_model(attention: str = "by_item", tied: bool = False, **more: Any) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes(32, 64, layers=2, heads=4, key_heads=2), vocab_size=VOCAB, max_position_embeddings=128, tie_word_embeddings=tied,
        attn_implementation=attention, **more,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def made_rows(step: int, rank: int, world_size: int, static: bool = False) -> list[Row]:
    """`static`: padded to few shapes."""
    rows = step_rows(made_plan(), made_store(), step, rank, world_size, CAPACITY, "example")
    if not static:
        return rows
    shapes = static_shapes(made_plan(), made_store().lengths, world_size, CAPACITY, CAPACITY)
    return [shapes.pad(row) for row in rows]


def run_steps(engine: Engine, rank: int, world_size: int, static: bool = False) -> tuple[list[torch.Tensor], list[float]]:
    """This rank's loss shares and the global gradient norms; `static`: rows padded to few shapes."""
    losses, norms = [], []
    for step in range(NUM_STEPS):
        rows = made_rows(step, rank, world_size, static)
        loss, norm = optimiser_step(engine, rows, learning_rate(STAGE, step, NUM_STEPS), "by_item")
        losses.append(loss)
        norms.append(norm)
    return losses, norms


def main(out: Path, world_size: int, rank: int) -> None:
    from trainer.step.engine import DeepSpeedEngine
    from trainer.step.solo import MastersEngine, as_run, engine_of
    from trainer.store.fragment_file import write_fragments

    class RoundedSums(MastersEngine):
        """Hands on its sums as DeepSpeed's bucket does."""

        def step(self, rate: float) -> float:
            for total in self._sums:
                total.copy_(total.bfloat16())
            return super().step(rate)

    cases = [(f"zero{stage}-fp32", stage, "fp32") for stage in (0, 1, 2, 3)] + [(f"zero{stage}-bf16", stage, "bf16") for stage in (1, 2, 3)]
    cases += [("static-fp32", 1, "fp32")]
    if world_size == 1:
        cases += [("solo-fp32", 3, "fp32"), ("solo-bf16", 3, "bf16")]
        cases += [(f"{kind}-bf16-unclipped", 1, "bf16") for kind in ("solo", "rounded", "zero1")]
    for name, zero_stage, precision in cases:
        model = made_model()
        start = {key: value.detach().clone() for key, value in model.named_parameters()}
        config = CONFIG.model_copy(update={"zero_stage": zero_stage, **({"clip": 0.0} if "unclipped" in name else {})})
        if name.startswith("solo"):
            engine = engine_of(model, as_run(config, precision), precision, torch.device("cpu"))  # type: ignore[arg-type]
            assert type(engine) is not DeepSpeedEngine
        elif name.startswith("rounded"):
            engine = RoundedSums(model, config, torch.device("cpu"))
        else:
            engine = DeepSpeedEngine(model, config, precision, torch.device("cpu"))  # type: ignore[arg-type]
        if precision == "bf16":
            engine.set_fp32(start.__getitem__)
            write_fragments(out / name / "start", rank, engine.fragments())
        losses, norms = run_steps(engine, rank, world_size, static=name == "static-fp32")
        totals = torch.stack(losses).float()
        torch.distributed.all_reduce(totals)
        write_fragments(out / name / "end", rank, engine.fragments())
        if rank == 0:
            (out / name / "result.json").write_text(json.dumps({"losses": totals.tolist(), "norms": norms}))
        engine.close()
        torch.distributed.barrier()

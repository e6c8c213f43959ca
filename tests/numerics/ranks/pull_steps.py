"""What is done before a step (DeepSpeedEngine.pull): once, and not before a step that is skipped. By every engine."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.numerics.ranks import steps
from trainer.step.solo import as_run, engine_of
from trainer.step.step import optimiser_step

CASES = [(stage, "fp32") for stage in (0, 1, 2, 3)] + [(stage, "bf16") for stage in (1, 2, 3)]


def main(out: Path, world_size: int, rank: int) -> None:
    found: dict[str, Any] = {}
    for zero_stage, precision in CASES:
        config = as_run(steps.CONFIG.model_copy(update={"zero_stage": zero_stage, "weight_decay": 0.0}), precision)  # type: ignore[arg-type]
        engine = engine_of(steps.made_model(), config, precision, torch.device("cpu"))  # type: ignore[arg-type]
        parts = [(start, weight) for *_, weight in engine.shares_of_trained() if (start := weight().clone()) is not None]
        pulls: list[float] = []

        def pull(rate: float, parts: Any = parts, pulls: Any = pulls) -> None:
            pulls.append(rate)
            for _, weight in parts:
                weight().add_(1)

        engine.pull = pull
        moved = []
        for step, factor in enumerate((float("nan"), 1.0)):
            rows = steps.made_rows(0, rank, world_size)
            for row in rows:
                row["loss_weight"] = row["loss_weight"] * factor
            optimiser_step(engine, rows, 0.0, "by_item")
            moved.append(
                sorted(
                    {float((weight() - start).abs().max()) for start, weight in parts}
                    | {float((weight() - start).min()) for start, weight in parts}
                )
            )
            assert len(pulls) == step, (zero_stage, precision, pulls)
        found[f"zero{zero_stage}-{precision}"] = moved
        engine.close()
    (out / f"rank-{rank}.json").write_text(json.dumps(found))

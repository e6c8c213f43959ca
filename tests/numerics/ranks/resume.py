"""Four steps with a save after two, and the last two again from the save: run by test_resume.py in a gloo process group.

Without saved_by: every case whole, saved, and resumed; with it: every case resumed from what so many ranks saved under ZeRO-saved_zero.
"""

import json
from pathlib import Path

import torch

from tests.numerics.ranks import steps
from trainer.network.loading import load_into
from trainer.schedule import learning_rate
from trainer.step.step import Draws, optimiser_step
from trainer.store.weights import FragmentWeights

SAVED_AT = 2
CASES = [(zero_stage, "fp32") for zero_stage in (0, 1, 2, 3)] + [(1, "bf16"), (2, "bf16"), (3, "bf16")]
SOLO = -1
"""In the place of a ZeRO stage: one process alone, without DeepSpeed."""
SHAPES = {name: list(p.shape) for name, p in steps.made_model().named_parameters()}


def run(  # type: ignore[no-untyped-def]
    engine, first: int, last: int, rank: int, world_size: int, draw: Draws = lambda row: None, static: bool = False
) -> list[str]:
    """Losses of the whole steps, in hexadecimal; `static`: rows padded to few shapes."""
    losses = []
    for step in range(first, last):
        rows = steps.made_rows(step, rank, world_size, static)
        share, _ = optimiser_step(engine, rows, learning_rate(steps.STAGE, step, steps.NUM_STEPS), "by_item", draw=draw)
        total = share.double().reshape(1)
        torch.distributed.all_reduce(total)
        losses.append(float(total).hex())
    return losses


def engine_from(folder: Path | None, saved_by: int, zero_stage: int, precision: str):  # type: ignore[no-untyped-def]
    from trainer.step.engine import MOMENTS, DeepSpeedEngine
    from trainer.step.solo import engine_of

    model = steps.made_model()
    start = FragmentWeights(folder, SHAPES, saved_by) if folder else None
    exact = start.read if start else {n: p.detach().clone() for n, p in model.named_parameters()}.__getitem__
    if start:
        load_into(model, start)
    config = steps.CONFIG.model_copy(update={"zero_stage": max(zero_stage, 0)})
    make = engine_of if zero_stage == SOLO else DeepSpeedEngine
    engine = make(model, config, precision, torch.device("cpu"))  # type: ignore[arg-type]
    if precision == "bf16":
        engine.set_fp32(exact)
    if folder:
        moments = {moment: FragmentWeights(folder, SHAPES, saved_by, moment) for moment in MOMENTS}
        engine.set_moments(lambda moment, name, a, b: moments[moment].slice(name, a, b), SAVED_AT)
    return engine


def main(out: Path, world_size: int, rank: int, saved_by: str = "", saved_zero: str = "") -> None:
    from trainer.store.fragment_file import write_fragments

    for zero_stage, precision in CASES + ([(SOLO, "fp32"), (SOLO, "bf16")] if world_size == 1 else []):
        folder = out / f"zero{zero_stage}-{precision}"
        result: dict[str, object] = {}
        if saved_by:
            saved = out.parent / "first" / f"zero{saved_zero}-{precision}" / "saved"
        else:
            saved = folder / "saved"
            engine = engine_from(None, 0, zero_stage, precision)
            result["whole"] = run(engine, 0, SAVED_AT, rank, world_size)
            write_fragments(saved, rank, engine.state_fragments())
            result["whole"] += run(engine, SAVED_AT, steps.NUM_STEPS, rank, world_size)  # type: ignore[operator]
            write_fragments(folder / "whole", rank, engine.state_fragments())
            engine.close()
            torch.distributed.barrier()
        engine = engine_from(saved, int(saved_by or world_size), zero_stage, precision)
        result["resumed"] = run(engine, SAVED_AT, steps.NUM_STEPS, rank, world_size)
        result["optimizer_steps"] = engine.optimizer_steps()
        write_fragments(folder / "resumed", rank, engine.state_fragments())
        engine.close()
        torch.distributed.barrier()
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(result))

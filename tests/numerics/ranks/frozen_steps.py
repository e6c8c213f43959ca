"""The steps of tests/numerics/ranks/steps.py with half of the matrices frozen, whole, and some resumed after two: run by test_freeze.py."""

from pathlib import Path

import torch

from data.config import Stage
from tests.helpers.networks import Held
from tests.numerics.ranks import resume, steps

STAGE = Stage.model_validate({**steps.STAGE.model_dump(), "freeze_share": 0.5})
SEED, NUMBER = 3, 1
RESUMED = [(3, "fp32"), (2, "bf16")]
CASES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (2, "bf16"), (3, "bf16")]


def start() -> Held:
    """The weights before, in full precision."""
    return Held({name: p.detach().clone() for name, p in steps.made_model().named_parameters()})


def engine_of(zero_stage: int, precision: str, saved: Path | None, world_size: int):  # type: ignore[no-untyped-def]
    """As trainer/worker.py makes it: from the start, or from what a run saved in the middle."""
    from trainer.network.loading import load_into
    from trainer.step.engine import MOMENTS, DeepSpeedEngine
    from trainer.step.freeze import freeze
    from trainer.store.weights import FragmentWeights

    model = steps.made_model()
    weights = FragmentWeights(saved, resume.SHAPES, world_size) if saved else start()
    load_into(model, weights)
    freeze(model, STAGE, SEED, NUMBER)
    engine = DeepSpeedEngine(model, steps.CONFIG.model_copy(update={"zero_stage": zero_stage}), precision, torch.device("cpu"))  # type: ignore[arg-type]
    if precision == "bf16":
        engine.set_fp32(weights.read)
    if saved:
        moments = {moment: FragmentWeights(saved, resume.SHAPES, world_size, moment) for moment in MOMENTS}
        engine.set_moments(lambda moment, name, a, b: moments[moment].slice(name, a, b), resume.SAVED_AT)
    return engine


def main(out: Path, world_size: int, rank: int) -> None:
    from trainer.step.freeze import exact_fragments
    from trainer.store.fragment_file import write_fragments

    for zero_stage, precision in CASES:
        folder = out / f"zero{zero_stage}-{precision}"
        engine = engine_of(zero_stage, precision, None, world_size)
        resume.run(engine, 0, resume.SAVED_AT, rank, world_size)
        write_fragments(folder / "saved", rank, engine.state_fragments())
        resume.run(engine, resume.SAVED_AT, steps.NUM_STEPS, rank, world_size)
        write_fragments(folder / "whole", rank, exact_fragments(engine.fragments(), engine.module, start()))
        engine.close()
        torch.distributed.barrier()
        if (zero_stage, precision) not in RESUMED:
            continue
        engine = engine_of(zero_stage, precision, folder / "saved", world_size)
        resume.run(engine, resume.SAVED_AT, steps.NUM_STEPS, rank, world_size)
        write_fragments(folder / "resumed", rank, exact_fragments(engine.fragments(), engine.module, start()))
        engine.close()
        torch.distributed.barrier()

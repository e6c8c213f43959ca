"""Four steps of which the last two are other ranks', rows of other shapes and layers that are compiled or not: run by test_compiled.py in a gloo process group."""

import os
from pathlib import Path

import torch

from tests.numerics.ranks.resume import SAVED_AT, engine_from, run
from tests.numerics.ranks.steps import NUM_STEPS
from trainer.kernels.compiled import CompiledLayers


def main(out: Path, world_size: int, rank: int, shapes: str, zero_stage: str, saved_by: str = "") -> None:
    """Two steps from the start, saved; or the other two from what `saved_by` ranks saved. "static" rows go through compiled layers."""
    from trainer.store.fragment_file import write_fragments

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(out.parent / "cache")
    first, last = (SAVED_AT, NUM_STEPS) if saved_by else (0, SAVED_AT)
    engine = engine_from(out.parent / "first" / "end" if saved_by else None, int(saved_by or 0), int(zero_stage), "fp32")
    layers = CompiledLayers(engine.module, static=True) if shapes == "static" else None
    losses = run(engine, first, last, rank, world_size, static=shapes == "static")
    assert layers is None or not layers.why_not, layers.why_not
    write_fragments(out / "end", rank, engine.state_fragments())
    if rank == 0:
        (out / "losses").write_text(" ".join(losses))
    engine.close()
    torch.distributed.barrier()

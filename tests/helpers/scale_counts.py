"""The counting of benchmarks.scale_* at a small size, in a real group: run by test_benchmarks.py."""

import json
from pathlib import Path

import torch

from benchmarks import scale, scale_rank


def main(out: Path, world_size: int, rank: int) -> None:
    if world_size == 1:
        found = {f"zero{zero_stage}": _stages(out, zero_stage) for zero_stage in (1, 3)}
    else:
        if rank == 0:
            scale.make_stage(out / "run", 256, 2, world_size)
        torch.distributed.barrier()
        found = {what.__name__: what(out / "run", rank, world_size, 3) for what in (scale_rank.load, scale_rank.leave)}
    (out / f"{rank}.json").write_text(json.dumps(found))


def _stages(out: Path, zero_stage: int) -> dict[str, int]:
    folder = out / str(zero_stage)
    folder.mkdir()
    return scale_rank.stages(folder, 0, 1, zero_stage)

"""Engines made from what ranks read by shares, every read recorded, and what they leave: run by test_shares.py in a gloo group."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.numerics.ranks import steps

CASES = [(0, "fp32")] + [(stage, precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16")]
SHAPES = {name: list(p.shape) for name, p in steps.made_model().named_parameters()}


@contextmanager
def recorded() -> Iterator[list[int]]:
    """Bytes of every read of weights meanwhile."""
    counts: list[int] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        counts.append(real(descriptor, buffers, offset))
        return counts[-1]

    os.preadv = preadv  # type: ignore[assignment]
    try:
        yield counts
    finally:
        os.preadv = real


def start_of(folder: Path, from_stage: bool, zero_stage: int, precision: str) -> tuple[Any, Any]:
    """(engine with what stands around it, bytes that this rank has read)."""
    from trainer.export.export import parent_weights
    from trainer.jobs.prepare import Job
    from trainer.jobs.worker_settings import WorkerSettings
    from trainer.step import set_up
    from trainer.step.isolation import Isolation
    from trainer.store.stages import StageStore

    set_up.decide = lambda *_: Isolation(True, None, "")  # not tried: what is looked at is the weights
    trainer = steps.CONFIG.model_copy(update={"zero_stage": zero_stage})
    settings = WorkerSettings(str(folder), str(folder / "model"), trainer, precision, 0, False)  # type: ignore[arg-type]
    job = Job("second", "first" if from_stage else None, "made", steps.STAGE, 1, "", "", steps.CAPACITY, steps.CAPACITY, 0)
    with recorded() as counts:
        parent = parent_weights(settings, job.parent, StageStore(folder), together=True)
        made = set_up.make_engine(settings, job, parent, torch.device("cpu"), None)
    return made, sum(counts)


def main(out: Path, world_size: int, rank: int, written_by: str) -> None:
    from trainer.export.export import export_stage
    from trainer.store.fragment_file import filled, write_fragments
    from trainer.store.stages import write_json
    from trainer.store.storage import give_groups

    model = steps.made_model()
    if rank == 0:
        model.save_pretrained(out / "model")
        files = {}
        for writer in range(int(written_by)):
            pieces = [(name, *cut(p.detach().flatten(), writer, int(written_by))) for name, p in model.named_parameters()]
            files[f"weights/rank-{writer:05d}.safetensors"] = write_fragments(
                out / "stages/first/weights", writer, (piece for piece in pieces if len(piece[2]))
            )
        write_json(out / "stages/first/manifest.json", {"shapes": SHAPES, "world_size": int(written_by), "files": files})
    torch.distributed.barrier()
    facts: dict[str, Any] = {}
    for zero_stage, precision in CASES:
        for from_stage in (True, False):
            name = f"zero{zero_stage}-{precision}-{'stage' if from_stage else 'folder'}"
            made, read = start_of(out, from_stage, zero_stage, precision)
            counts: list[Any] = [None] * world_size
            torch.distributed.all_gather_object(counts, read)
            facts[name] = {"read": counts}
            if zero_stage < 3:  # what the next step multiplies with
                whole = {key: p.detach() for key, p in made.engine.module.named_parameters()}
                facts[name]["rounded"] = all(
                    torch.equal(p.float(), dict(model.named_parameters())[key].detach().to(p.dtype).float()) for key, p in whole.items()
                )
            buffer = filled(made.engine.fragments())
            buffer.write(out / name / f"rank-{rank:05d}.safetensors")
            made.engine.close()
            if from_stage:
                with recorded() as more:
                    told = hf_of(export_stage, buffer, out, precision, name)
                facts[name] |= {"hf": told, "read_again": sum(more)}
            torch.distributed.barrier()
    made, _ = start_of(out, True, 2, "bf16")
    facts["timeouts"] = [timeouts(), give_groups(4321.0), timeouts()]
    made.engine.close()
    if rank == 0:
        (out / "facts.json").write_text(json.dumps(facts))


def timeouts() -> list[float]:
    """Of every group that this process is in, in seconds."""
    groups: Any = torch.distributed.distributed_c10d._world.pg_map
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]


def cut(flat: torch.Tensor, rank: int, num_ranks: int) -> tuple[int, torch.Tensor]:
    share = -(-len(flat) // num_ranks)
    return rank * share, flat[rank * share : (rank + 1) * share]


def hf_of(export_stage: Any, buffer: Any, out: Path, precision: str, name: str) -> Any:
    """Only the weights: a made model has no tokenizer."""
    from trainer.export import export

    export._describe = lambda *_: None  # type: ignore[assignment]
    export.folder_buffers = lambda *_: ({}, {})  # type: ignore[assignment]
    return export_stage(buffer.fragments(), SHAPES, str(out / "model"), out / name / "hf", precision, "pit", torch.device("cpu"))

"""A cell's step as the trainer takes it, in a gloo group: its driver's refusals, its engine, its decision on rows, its step; then what came out."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from console import RunError, UserError
from data.rows import step_rows
from tests.parity import items, oracle
from tests.parity.cells import Cell
from tests.parity.verdict import Verdict, judge
from trainer.config import TrainerConfig
from trainer.engine import MOMENTS
from trainer.export import parent_weights
from trainer.freeze import exact_fragments
from trainer.prepare import Job
from trainer.run import precision_of
from trainer.set_up import StageEngine, make_engine
from trainer.step import optimiser_step
from trainer.store import StageStore
from trainer.worker_settings import WorkerSettings

Fault = Callable[[StageEngine], None]
CPU = torch.device("cpu")


def take_step(cell: Cell, folder: Path, fault: Fault | None = None) -> dict[str, Any] | None:
    """On rank 0 what the oracle has too, and: losses of the ranks, before (weights), moments, one_item, attention. UserError, RunError: refused."""
    config = TrainerConfig(zero_stage=cell.zero, precision=cell.precision, row_tokens=items.CAPACITY[cell.rows])  # type: ignore[arg-type]
    stage = items.stage(cell.trained, cell.rows)
    precision = precision_of(config, has_gpu=False)
    if stage.adapter:
        from trainer.adapter import check_adapter

        check_adapter(stage.adapter, str(folder), cell.zero)
    capacity = config.row_tokens
    settings = WorkerSettings(str(folder.parent), str(folder), config, precision, items.SEED, False)
    job = Job("key", None, cell.name, stage, 1, "", "", capacity, capacity, items.NUMBER)
    parent = parent_weights(settings, None, StageStore(folder.parent))
    made = make_engine(settings, job, parent, CPU, None)
    engine = made.engine
    try:
        if fault:
            fault(made)
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        before = _whole(engine.fragments(), made.trained_shapes)
        rows = step_rows(
            items.plan(cell.rows), items.store(cell.rows), 0, rank, world_size, capacity, stage.loss, longest=capacity, one_item=made.isolation.one_item
        )  # fmt: skip
        loss, norm = optimiser_step(engine, rows, items.RATE, made.attention)
        losses: list[float] = [0.0] * world_size
        torch.distributed.all_gather_object(losses, float(loss))
        fragments = engine.state_fragments()
        after = _whole(exact_fragments(fragments, engine.module, parent) if stage.freeze_share else fragments, made.trained_shapes)
        buffers = {name: buffer.detach().clone() for name, buffer in engine.module.named_buffers()}
    finally:
        engine.close()
    return {
        "losses": losses, "norm": norm, "before": before, "after": after, "buffers": buffers, "one_item": made.isolation.one_item,
        "attention": made.attention,
    } if rank == 0 else None  # fmt: skip


def _whole(fragments: Any, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """On rank 0 the fragments of all ranks put together, moments as "exp_avg/…"; elsewhere nothing."""
    own = [(name, offset, values.detach().float().clone()) for name, offset, values in fragments]
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.gather_object(own, ranks if torch.distributed.get_rank() == 0 else None)
    whole: dict[str, Tensor] = {}
    for name, offset, values in (piece for rank in ranks for piece in rank or []):
        parameter = next((name.removeprefix(f"{moment}/") for moment in MOMENTS if name.startswith(f"{moment}/")), name)
        flat = whole.setdefault(name, torch.full(shapes[parameter], float("nan"))).view(-1)
        flat[offset : offset + len(values)] = values
    return whole


def outcome(cell: Cell, out: Path, fault: Fault | None = None, folder: Path | None = None) -> Verdict | None:
    """The cell's verdict, on rank 0. Anything unforeseen is raised."""
    folder = folder or out / cell.family
    try:
        taken = take_step(cell, folder, fault)
    except (UserError, RunError) as refusal:
        return Verdict("refused", str(refusal).splitlines()[0].replace(str(folder), cell.family))
    return judge(cell, taken, torch.load(oracle.path_of(out / cell.family, cell.trained, cell.rows))) if taken else None


def main(out: Path, world_size: int, rank: int, todo: str, target: str) -> None:
    """Cells of the JSON file `todo` in order; appends a line each to `target`. What is unforeseen ends the group with that cell's line written."""
    for number, values in enumerate(json.loads(Path(todo).read_text())):
        cell, started = Cell(**values), time.monotonic()
        try:
            found = outcome(cell, out)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} ({Path(place.filename).name}:{place.lineno})"
            (out / f"{Path(todo).stem}.{number}.{rank}.error").write_text(told)
            raise
        if rank == 0 and found:
            line = {**asdict(cell), **asdict(found), "seconds": round(time.monotonic() - started, 2)}
            with Path(target).open("a") as file:
                file.write(json.dumps(line) + "\n")
        torch.distributed.barrier()

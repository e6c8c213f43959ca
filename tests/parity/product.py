"""A cell's step as the trainer takes it, in a gloo group: its driver's refusals, its engine, its decision on rows, its step; then what came out."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from console import RunError, UserError
from data.config import Stage
from data.rows.flat_rows import step_rows
from tests.parity import items, oracle
from tests.parity.cells import Cell
from tests.parity.verdict import Verdict, judge
from trainer.config import TrainerConfig
from trainer.export.export import parent_weights
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.kernels.attention import attention_inputs
from trainer.kernels.linear_loss import tiny_row
from trainer.run import precision_of
from trainer.step.engine import MOMENTS
from trainer.step.freeze import exact_fragments
from trainer.step.set_up import StageEngine, make_engine
from trainer.step.step import optimiser_step
from trainer.store.stages import StageStore
from trainer.store.weights import Weights

Fault = Callable[[StageEngine], None]
"""Spoils an engine before its step: what the matrix must find."""
CPU = torch.device("cpu")


def outcome(cell: Cell, out: Path, folder: Path | None = None, fault: Fault | None = None) -> Verdict | None:
    """The cell's verdict, on rank 0. `folder`: another model than the oracle's, OUT/FAMILY. Anything unforeseen is raised."""
    folder = folder or out / cell.family
    stage = items.stage(cell.trained, cell.rows)
    try:
        settings = _refused_on_the_driver(cell, stage, folder)
        parent = parent_weights(settings, None, StageStore(folder.parent))
        capacity = settings.trainer.row_tokens
        job = Job("key", None, cell.name, stage, 1, "", "", capacity, capacity, items.NUMBER)
        made = make_engine(settings, job, parent, CPU, None)
    except (UserError, RunError) as refusal:
        told = str(refusal).splitlines()[0].replace(str(folder), cell.family)
        # Of a model a worker may say it, for then nothing has been trained; arms before an adapter's may have been.
        late = (
            stage.adapter and told.startswith("adapter") and "make_engine" in [f.name for f in traceback.extract_tb(refusal.__traceback__)]
        )
        return Verdict("error", f"refused only when its turn came: {told}") if late else Verdict("refused", told)
    try:
        if fault:
            fault(made)
        taken = _step(cell, stage, made, parent)
    finally:
        made.engine.close()
    if torch.distributed.get_rank():
        return None
    return judge(cell, taken, torch.load(oracle.path_of(out / cell.family, cell.trained, cell.rows)))


def _refused_on_the_driver(cell: Cell, stage: Stage, folder: Path) -> WorkerSettings:
    """What trainer/run.py looks at before a worker starts."""
    config = TrainerConfig(zero_stage=cell.zero, precision=cell.precision, row_tokens=items.CAPACITY[cell.rows])  # type: ignore[arg-type]
    precision = precision_of(config, has_gpu=False)
    if stage.adapter:
        from trainer.adapter.adapter import check_adapter

        check_adapter(stage.adapter, str(folder), cell.zero)
    return WorkerSettings(str(folder.parent), str(folder), config, precision, items.SEED, False)


def _step(cell: Cell, stage: Stage, made: StageEngine, parent: Weights) -> dict[str, Any]:
    """One step on this rank's rows; on rank 0 all that verdict.judge looks at."""
    engine, capacity = made.engine, items.CAPACITY[cell.rows]
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    before = _whole(engine.fragments(), made.trained_shapes)
    gradients = _watch_gradients(engine.module)
    rows = step_rows(
        items.plan(cell.rows), items.store(cell.rows), 0, rank, world_size, capacity, stage.loss, longest=capacity, one_item=made.isolation.one_item
    )  # fmt: skip
    loss, norm = optimiser_step(engine, rows, items.RATE, made.attention)
    ranks: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(ranks, (float(loss), gradients))
    fragments = engine.state_fragments()
    after = _whole(exact_fragments(fragments, engine.module, parent) if stage.freeze_share else fragments, made.trained_shapes)
    return {
        "losses": [loss for loss, _ in ranks], "gradients": [sums for _, sums in ranks], "norm": norm, "before": before, "after": after,
        "buffers": _buffers(made), "one_item": made.isolation.one_item, "attention": made.attention,
    }  # fmt: skip


def _watch_gradients(module: torch.nn.Module) -> dict[str, int]:
    """Parameter → a checksum of its raw gradients, micro-step after micro-step, as autograd hands them over: kept up to date from now on."""
    sums: dict[str, int] = {}

    def note(name: str, gradient: Tensor) -> None:
        sums[name] = crc32(gradient.detach().contiguous().view(torch.uint8).numpy().tobytes(), sums.get(name, 0))

    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, name=name: note(name, gradient))
    return sums


def _buffers(made: StageEngine) -> dict[str, Tensor]:
    """As a short row leaves them (a long rope's follow the last row), by the names of the model without an adapter."""
    row = tiny_row()
    ids, positions = (torch.as_tensor(row[key])[None] for key in ("input_ids", "position_ids"))
    with torch.no_grad():
        inputs = attention_inputs(made.attention, row["cu_seqlens"], CPU)
        made.engine.forward(input_ids=ids, position_ids=positions, use_cache=False, **inputs)
    buffers = made.engine.module.named_buffers(remove_duplicate=False)
    return {name.replace(".base_layer", ""): buffer.detach().clone() for name, buffer in buffers}


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


def main(out: Path, world_size: int, rank: int, todo: str) -> None:
    """Cells of the JSON file `todo` in order; appends a line each to its neighbour .lines. What is unforeseen goes into .error, and ends the group."""
    gc.freeze()  # DeepSpeed collects garbage six times as it makes some engines: a second each with all libraries in the heap
    for values in json.loads(Path(todo).read_text()):
        cell, started = Cell(**values), time.monotonic()
        try:
            found = outcome(cell, out)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            first = (str(error).splitlines() or [""])[0][:300]
            Path(todo).with_suffix(".error").write_text(f"{type(error).__name__}: {first} ({Path(place.filename).name}:{place.lineno})")
            raise
        if found and rank == 0:
            line = {**asdict(cell), **asdict(found), "seconds": round(time.monotonic() - started, 2)}
            with Path(todo).with_suffix(".lines").open("a") as file:
                file.write(json.dumps(line) + "\n")
        torch.distributed.barrier()

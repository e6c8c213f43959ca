"""Ray Data: each rank's share of a plan as a stream of rows, in order, nothing dropped.

Ray Train's default split deals rows out equally and drops the rest, and its iterators cannot start in the middle. Here every rank
has a stream of its own over the same step numbers, and takes from each step the rows that packing gives to it: the share is a
function of (plan, step, rank, world size), so any world size and any first step read the same items.
"""

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train

from console import RunError
from data.curriculum.plan import Plan, load_plan
from data.ground.durable import await_file
from data.rows.flat_rows import PAPER, STREAM_CPUS, Loss, Reading, Row, step_rows
from data.rows.token_store import TokenStore, open_store
from data.wording.templates import Wording
from failpoints import hit

_FIRST_STEPS = (1, 32)
"""Steps of the first two tasks: their rows leave before a block is full."""
_SPAN_STEPS = 2048
"""Steps made by every other Ray task, and made again when its process dies. A task costs ~10 ms, and a stage's are all listed at its start."""
_BLOCK_BYTES = 2**22  # a task's rows leave it in blocks of about this size, and it makes no more than two ahead; a block costs ~10 ms


@dataclass(frozen=True)
class StreamSpec:
    """What a worker anywhere needs to make the rows of one stage."""

    plan: str
    """Path of the plan on storage that all nodes share."""
    tokens: str
    """Folder of the token store, in the plain wording."""
    num_steps: int
    capacity: int
    """Tokens of a row."""
    loss: Loss
    first_step: int = 0
    reading: Reading = PAPER
    longest: int | None = None
    """Tokens of an item before it is cut: the model's positions, where a row holds more."""
    one_item: bool = False
    """Rows of one item each, for models whose items would see each other."""


class RankShares(ray.train.DataConfig):
    """Gives rank r the rows of rank r. Dataset names are keys of `specs`."""

    def __init__(self, specs: dict[str, StreamSpec]) -> None:
        super().__init__()
        self._specs = specs

    def configure(self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any) -> list[dict[str, Any]]:
        return [
            {name: share(self._specs[name], dataset, rank, world_size).iterator() for name, dataset in datasets.items()}
            for rank in range(world_size)
        ]


def step_spans(spec: StreamSpec) -> ray.data.Dataset:
    """The dataset behind a stage's streams, {"first", "end"} of consecutive steps; lazy.

    Few and long: Ray Data goes round all blocks of an input before the first of its output arrives (13 ms each).
    """
    ends = itertools.accumulate((*_FIRST_STEPS, *itertools.repeat(_SPAN_STEPS, spec.num_steps // _SPAN_STEPS + 1)), initial=spec.first_step)
    bounds = sorted({min(end, spec.num_steps) for end in ends})
    spans = [{"first": first, "end": end} for first, end in itertools.pairwise(bounds)]
    return ray.data.from_items(spans, override_num_blocks=len(spans))


def share(spec: StreamSpec, spans: ray.data.Dataset, rank: int, world_size: int) -> ray.data.Dataset:
    """One rank's rows as they travel (see `_packed`), in the order of steps and micro-steps."""

    def blocks(block: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        plan, store = _opened(spec.plan, spec.tokens, spec.reading.wording)
        made: list[Row] = []
        size = 0
        for step in itertools.chain.from_iterable(map(range, block["first"], block["end"])):
            hit("stream.rows")
            rows = step_rows(plan, store, step, rank, world_size, spec.capacity, spec.loss, spec.reading, spec.longest, spec.one_item)
            made += rows
            size += sum(row["input_ids"].nbytes for row in rows)  # 8 bytes a token, as ids and weights take on their way
            if size >= _BLOCK_BYTES:
                yield _packed(made)
                made, size = [], 0
        if made:
            yield _packed(made)

    stream = spans.map_batches(blocks, batch_size=None, num_cpus=STREAM_CPUS, concurrency=1)
    stream.context.execution_options.preserve_order = True  # without it steps arrive interleaved
    stream.context.target_max_block_size = _BLOCK_BYTES
    stream.context.enable_progress_bars = False
    return stream


_NUMBERS = ("step", "micro_step", "num_micro_steps")
_TRAVEL_AS: dict[str, Any] = {
    "input_ids": np.int32, "target_ids": np.int32, "loss_weight": np.float32, "cu_seqlens": np.int32,
    "followed": np.int64, "follow_weight": np.float32,
}  # fmt: skip
"""Arrays of different lengths travel as bytes: no ragged-tensor conversion. Positions follow from cu_seqlens; no vocabulary needs 64 bits."""
_ARRIVE_AS = {**_TRAVEL_AS, "input_ids": np.int64, "target_ids": np.int64}


def _packed(rows: list[Row]) -> pa.Table:
    columns: dict[str, pa.Array] = {key: pa.array([row[key] for row in rows], pa.int64()) for key in _NUMBERS}
    for key, kind in _TRAVEL_AS.items():
        if key in rows[0]:
            columns[key] = pa.array([row[key].astype(kind, copy=False).tobytes() for row in rows], pa.binary())
    return pa.table(columns)


def _unpacked(table: pa.Table) -> Iterator[Row]:
    for number in range(len(table)):
        row: Row = {key: table[key][number].as_py() for key in _NUMBERS}
        for key in table.column_names[len(_NUMBERS) :]:
            array = np.frombuffer(table[key][number].as_buffer(), dtype=_TRAVEL_AS[key])
            row[key] = array.astype(_ARRIVE_AS[key])  # a copy: the block may go
        starts = row["cu_seqlens"]
        row["position_ids"] = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
        yield row


def iterate(iterator: Any, timeout_s: float) -> Iterator[Row]:
    """Rows of a stream, up to 8 fetched ahead by a thread. RunError when none comes for `timeout_s`, naming the likely cause."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=8)

    def fetch() -> None:
        try:
            for table in iterator.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in _unpacked(table):
                    ready.put(row)
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=fetch, daemon=True, name="rows").start()
    while True:
        try:
            row = ready.get(timeout=timeout_s)
        except queue.Empty:
            free = ray.available_resources().get("CPU", 0)
            raise RunError(
                f"no row for {timeout_s:.0f} s; {free:g} CPUs of the cluster are free and each rank's stream needs {STREAM_CPUS}: "
                "use fewer workers or add CPUs"
            ) from None
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row


@lru_cache(maxsize=4)
def _opened(plan: str, tokens: str, wording: Wording) -> tuple[Plan, TokenStore]:
    return load_plan(await_file(Path(plan))), open_store(Path(tokens)).worded(wording)

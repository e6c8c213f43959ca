"""Ray Data: each rank's share of a plan as a stream of rows, in order, nothing dropped.

Ray Train's default split deals rows out equally and drops the rest, and its iterators cannot start in the middle. Here every rank
has a stream of its own over the same step numbers, and takes from each step the rows that packing gives to it: the share is a
function of (plan, step, rank, world size), so any world size and any first step read the same items.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import ray.train

from console import RunError
from data.plan import Plan, load_plan
from data.rows import PAPER, STREAM_CPUS, Loss, Reading, Row, step_rows
from data.templates import Wording
from data.tokens import TokenStore, open_store
from failpoints import hit

_SPAN_STEPS = 2048
"""Steps made by one Ray task, and made again when its process dies. A task costs ~10 ms, and a stage's are all listed at its start."""
_CHUNK_STEPS = 16  # steps handed on at once by a task
_BLOCK_BYTES = 2**18  # a task's rows leave it in blocks of about this size, and it makes no more than two ahead


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
    firsts = range(spec.first_step, spec.num_steps, _SPAN_STEPS)
    spans = [{"first": first, "end": min(first + _SPAN_STEPS, spec.num_steps)} for first in firsts]
    return ray.data.from_items(spans, override_num_blocks=len(spans))


def share(spec: StreamSpec, spans: ray.data.Dataset, rank: int, world_size: int) -> ray.data.Dataset:
    """One rank's rows, in the order of steps and micro-steps."""

    def rows(block: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        plan, store = _opened(spec.plan, spec.tokens, spec.reading.wording)
        for first, end in zip(block["first"], block["end"], strict=True):
            for begin in range(first, end, _CHUNK_STEPS):
                hit("stream.rows")
                made = [
                    row
                    for step in range(begin, min(begin + _CHUNK_STEPS, end))
                    for row in step_rows(
                        plan, store, step, rank, world_size, spec.capacity, spec.loss, spec.reading, spec.longest, spec.one_item
                    )
                ]
                # Arrays of different lengths travel as bytes: no ragged-tensor conversion, and the types are exact on arrival.
                yield {key: [v.tobytes() if isinstance(v, np.ndarray) else v for v in (row[key] for row in made)] for key in made[0]}

    stream = spans.map_batches(rows, batch_size=None, num_cpus=STREAM_CPUS, concurrency=1)
    stream.context.execution_options.preserve_order = True  # without it steps arrive interleaved
    stream.context.target_max_block_size = _BLOCK_BYTES
    stream.context.enable_progress_bars = False
    return stream


def iterate(iterator: Any, timeout_s: float, ahead: int = 8) -> Iterator[Row]:
    """Rows of a stream, fetched `ahead` by a thread. RunError when none comes for `timeout_s`, naming the likely cause."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)

    def fetch() -> None:
        try:
            for row in iterator.iter_rows():
                ready.put(_from_bytes(row))
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


_TYPES = {"input_ids": np.int64, "target_ids": np.int64, "position_ids": np.int64, "loss_weight": np.float32, "cu_seqlens": np.int32}


def _from_bytes(row: dict[str, Any]) -> Row:
    return {key: np.frombuffer(value, dtype=_TYPES[key]).copy() if key in _TYPES else int(value) for key, value in row.items()}


@lru_cache(maxsize=4)
def _opened(plan: str, tokens: str, wording: Wording) -> tuple[Plan, TokenStore]:
    return load_plan(Path(plan)), open_store(Path(tokens)).worded(wording)

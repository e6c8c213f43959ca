"""What feeding a rank costs: python -m benchmarks.stream

A plan of steps that are 8 rows of 2,048 tokens for each of two ranks, items as in benchmarks/mix.py. First the cost of a batch of 8 rows in passes
at full speed, one rank, CPU seconds of this process and all that it starts: data/rows/stream.py; Ray Data as it is usually written (Parquet of token lists,
`map_batches` that packs, `iter_torch_batches`); torch's DataLoader with one worker over the same rows as ours. What a further batch costs: a long pass
less a short one, so that starting processes is in neither (plain Ray Data starts ten a pass, 20 CPU seconds, ours one). In turns, median of 5.
Then two ranks that take a batch every 100 ms (a sleep): the share of that which they wait.
Goal: data wait at most 1 % of the step, at most 0.5 of plain Ray Data's cost. Writes benchmarks/results/stream.json.
"""

import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from benchmarks.mix import mixed_lengths
from benchmarks.result_file import write_result_file
from benchmarks.tiny import made_store, plan_of, save_store
from cluster.connect import connected
from console import door, progress
from data.rows.flat_rows import rank_rows
from data.rows.stream import RankShares, StreamSpec, iterate, step_spans
from data.rows.token_store import TokenStore

ROWS, ROW_TOKENS, WORLD_SIZE = 8, 2048, 2
STEP_ITEMS = WORLD_SIZE * 54  # 54 items of 290 tokens are 8 rows
SHORT, LONG, ROUNDS = 96, 1024, 5  # steps of a pass
WAIT_STEPS, STEP_S = 60, 0.1
WARM_UP = 20  # batches that fill the pipeline
LOGICAL_CPUS = 8
GOALS = {"data_wait": 0.01, "ratio": 0.5}


def ours(spec: StreamSpec, rank: int, world_size: int) -> Iterator[Any]:
    shares = RankShares({"s": spec}).configure({"s": step_spans(spec)}, world_size, None, None)
    rows = iterate(shares[rank]["s"], timeout_s=60)
    for _, batch in itertools.groupby(rows, key=lambda row: row["step"]):
        yield list(batch)


def pack_in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """What a `map_batches` of a fine-tuning script does: items one after the other, cut into rows."""
    lists = [np.asarray(item) for item in rows["input_ids"]]
    ids = np.concatenate(lists)
    positions = np.concatenate([np.arange(len(item)) for item in lists])
    whole = len(ids) // ROW_TOKENS * ROW_TOKENS
    made = {"input_ids": ids, "position_ids": positions, "loss_weight": np.where(positions == 0, 0, 1 / len(ids)).astype(np.float32)}
    return {key: value[:whole].reshape(-1, ROW_TOKENS) for key, value in made.items()}


def plain_ray_data(path: str, rank: int, world_size: int) -> Iterator[Any]:
    dataset = ray.data.read_parquet(path).map_batches(pack_in_order, batch_size=STEP_ITEMS)
    streams = dataset.streaming_split(world_size, equal=True) if world_size > 1 else [dataset.iterator()]
    yield from streams[rank].iter_torch_batches(batch_size=ROWS, prefetch_batches=2)


class Rows(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __init__(self, store: TokenStore, steps: int, rank: int, world_size: int) -> None:
        self._given = store, steps, rank, world_size

    def __iter__(self) -> Iterator[Any]:
        store, steps, rank, world_size = self._given
        rows = rank_rows(plan_of(steps * STEP_ITEMS, STEP_ITEMS), store, rank, world_size, ROW_TOKENS, "token")
        for _, batch in itertools.groupby(rows, key=lambda row: row["step"]):
            yield [{key: torch.as_tensor(value) for key, value in row.items()} for row in batch]


def data_loader(store: TokenStore, steps: int, rank: int, world_size: int) -> Iterator[Any]:
    yield from torch.utils.data.DataLoader(Rows(store, steps, rank, world_size), batch_size=None, num_workers=1, prefetch_factor=4)


class CpuMeter:
    """CPU seconds of this process, its threads and everything that it has started, what has ended since included: Ray's processes are its children."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, float], float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:  # a process that ends takes what it used since the last look with it
            self._look()
            time.sleep(0.2)

    def _look(self) -> None:
        with self._lock:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    self._children[process.pid, process.create_time()] = times.user + times.system

    def total_s(self) -> float:
        self._look()
        return time.process_time() + sum(self._children.values())


def cost_of_a_pass(meter: CpuMeter, batches: Iterator[Any]) -> tuple[float, int]:
    """(CPU seconds, rows) of a whole pass: a stream works ahead, so that a part of one says nothing."""
    started = meter.total_s()
    num_rows = sum(rows_of(batch) for batch in batches)
    return meter.total_s() - started, num_rows


def cost_of_a_batch(meter: CpuMeter, batches_of: Any) -> float:
    """CPU seconds of 8 rows more."""
    (short_s, few), (long_s, many) = (cost_of_a_pass(meter, batches_of(steps, 0, 1)) for steps in (SHORT, LONG))
    return (long_s - short_s) / (many - few) * ROWS


def rows_of(batch: Any) -> int:
    return len(batch) if isinstance(batch, list) else len(batch["input_ids"])


def waits(batches: Iterator[Any], shares: list[float]) -> None:
    """Takes a batch every STEP_S; appends the share of the time that it waited."""
    waited = 0.0
    for number in range(WAIT_STEPS + WARM_UP):
        asked = time.monotonic()
        next(batches)
        if number >= WARM_UP:
            waited += time.monotonic() - asked
        time.sleep(STEP_S)
    shares.append(waited / (waited + WAIT_STEPS * STEP_S))


def both_ranks(batches_of: Any) -> float:
    """The larger share of two ranks that train side by side."""
    shares: list[float] = []
    threads = [threading.Thread(target=waits, args=(batches_of(SHORT, rank, WORLD_SIZE), shares)) for rank in range(WORLD_SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(shares) == WORLD_SIZE, "a rank had no batch"
    return max(shares)


def made_files(folder: Path, steps: int) -> tuple[StreamSpec, TokenStore, str]:
    folder.mkdir()
    store = made_store(mixed_lengths(steps * STEP_ITEMS), True)
    save_store(store, folder / "tokens")
    plan_of(steps * STEP_ITEMS, STEP_ITEMS).save(folder / "plan.npz")
    offsets = pa.array(store.offsets)
    tokens = pa.LargeListArray.from_arrays(offsets, pa.array(store.tokens.astype(np.int32)))
    (folder / "parquet").mkdir()
    for n in range(4):  # a few files, as data sets have
        part = tokens.slice(n * len(tokens) // 4, len(tokens) // 4)
        pq.write_table(pa.table({"input_ids": part}), folder / "parquet" / f"{n}.parquet")
    return StreamSpec(str(folder / "plan.npz"), str(folder / "tokens"), steps, ROW_TOKENS, "token"), store, str(folder / "parquet")


def main(argv: list[str] | None = None) -> None:
    with tempfile.TemporaryDirectory() as place, connected(LOGICAL_CPUS), progress() as bar:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        made = {steps: made_files(Path(place) / str(steps), steps) for steps in (SHORT, LONG)}
        kinds: dict[str, Any] = {
            "ours": lambda steps, rank, world_size: ours(made[steps][0], rank, world_size),
            "plain_ray_data": lambda steps, rank, world_size: plain_ray_data(made[steps][2], rank, world_size),
            "data_loader": lambda steps, rank, world_size: data_loader(made[steps][1], steps, rank, world_size),
        }
        meter = CpuMeter()
        task = bar.add_task("stream", total=(ROUNDS + 1) * len(kinds) + 1)
        for batches_of in kinds.values():  # starts the worker processes
            cost_of_a_pass(meter, batches_of(SHORT, 0, 1))
            bar.advance(task)
        costs: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, batches_of in kinds.items():
                costs[name].append(cost_of_a_batch(meter, batches_of))
                bar.advance(task)
        data_wait = {name: round(both_ranks(kinds[name]), 4) for name in ("ours", "data_loader")}
        bar.advance(task)
    figures = {
        "data_wait": data_wait["ours"],
        "ratio": round(median(a / b for a, b in zip(costs["ours"], costs["plain_ray_data"], strict=True)), 3),
        "cpu_ms_a_batch": {name: round(1000 * median(of), 2) for name, of in costs.items()},
        "data_waits": data_wait,
    }
    holds = all(figures[key] <= goal for key, goal in GOALS.items())  # type: ignore[operator]
    write_result_file("stream", figures, {key: f"<= {goal:g}" for key, goal in GOALS.items()}, holds)


if __name__ == "__main__":
    door(main)

"""First row of a stream that begins at 90 % of an epoch: python -m benchmarks.resume_seek

10,000 and 1,000,000 items in steps of 32 (so that at 90 % of either a whole block of steps is left to be made), one rank, through Ray Data:
our stream, which begins at the step (in a process that is there: starting one takes 2 s, whatever the size), against the same stream from the
start with everything before the step thrown away (what a loader without a cursor does). Median of 5; of the long skip of 2.
Goal: independent of the size (<= 1.5 x) and at least 50 times faster at a million. Writes benchmarks/results/resume_seek.json.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import ray

from benchmarks.result_file import write_result_file
from cluster.connect import connected
from data.curriculum.plan import Plan
from data.rows.stream import StreamSpec, iterate, share, step_spans

SIZES = (10_000, 1_000_000)
LOGICAL_CPUS = 8  # a stream takes a quarter of one
ITEM_TOKENS, BATCH, CAPACITY = 20, 32, 8192


def made_files(folder: Path, items: int) -> StreamSpec:
    """A token store and a plan of one epoch."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rng.integers(3, 1000, items * ITEM_TOKENS).astype(np.uint32).tofile(folder / "tokens.bin")
    np.save(folder / "offsets.npy", np.arange(items + 1, dtype=np.int64) * ITEM_TOKENS)
    np.save(folder / "loss_start.npy", np.ones(items, dtype=np.int32))
    aids = {"is_document": np.ones(items, bool), "vocabulary": np.arange(1000), "in_answers": np.zeros(1000, bool)}
    np.savez(folder / "aids.npz", **aids, sentence_offsets=np.zeros(items + 1, np.int64), sentence_starts=np.zeros(0, np.int64))
    (folder / "manifest.json").write_text('{"key": "made", "sha256": "made", "format": 2}')
    starts = np.append(np.arange(0, items, BATCH), items)
    Plan(rng.permutation(items), starts, "made").save(folder / "plan.npz")
    return StreamSpec(str(folder / "plan.npz"), str(folder), len(starts) - 1, CAPACITY, "example")


def first_row_s(spec: StreamSpec, first_step: int, skip: int) -> float:
    """Seconds to the first row of step first_step + skip."""
    begun = StreamSpec(spec.plan, spec.tokens, spec.num_steps, spec.capacity, spec.loss, first_step=first_step)
    started = time.monotonic()
    rows = iterate(share(begun, step_spans(begun), 0, 1).iterator(), timeout_s=120)
    for row in rows:
        if row["step"] == first_step + skip:
            took = time.monotonic() - started
            for _ in rows:  # one that is left in the midst takes its process with it, and the next would wait 2 s for another
                pass
            return took
    raise AssertionError("the stream ended before the step")


def main() -> None:
    figures: dict[str, float] = {}
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would measure what else the machine does; for both sides
    with tempfile.TemporaryDirectory() as folder, connected(LOGICAL_CPUS):
        ray.data.DataContext.get_current().enable_progress_bars = False
        for size in SIZES:
            spec = made_files(Path(folder) / str(size), size)
            at = int(spec.num_steps * 0.9)
            first_row_s(spec, 0, 0)  # starts the worker processes
            figures[f"seek_{size}_s"] = round(median(first_row_s(spec, at, 0) for _ in range(5)), 3)
            figures[f"skip_{size}_s"] = round(median(first_row_s(spec, 0, at) for _ in range(5 if size < 100_000 else 2)), 3)
    small, large = SIZES
    figures["growth"] = round(figures[f"seek_{large}_s"] / figures[f"seek_{small}_s"], 2)
    figures["faster"] = round(figures[f"skip_{large}_s"] / figures[f"seek_{large}_s"], 1)
    write_result_file("resume_seek", figures, {"growth": "<= 1.5", "faster": ">= 50"}, figures["growth"] <= 1.5 and figures["faster"] >= 50)


if __name__ == "__main__":
    main()

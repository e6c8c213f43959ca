"""How long a save holds training up: python -m benchmarks.checkpoint_block

300 MB of state on two ranks (processes), saved in turn as the loop does it (copy, then written behind) and synchronously (the same copy,
write, hash, fsync and commit, waited for); A B A B, median of 7. Between saves each rank computes for a second, as training would.
Goal: blocked at most 0.1 of the synchronous save. Writes benchmarks/results/checkpoint_block.json.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from benchmarks.result_file import write_result_file
from trainer.store.checkpoint import Saver, checkpoints

STATE_BYTES = 300 * 10**6
WORLD_SIZE, REPEATS = 2, 7
GOAL = 0.1


def _rank(rank: int, folder: str, seconds: Any) -> None:
    torch.set_num_threads(1)
    values = torch.randn(STATE_BYTES // 4 // WORLD_SIZE // 60, 60)
    fragments = [(f"parameter.{n}", 0, values[:, n].contiguous()) for n in range(60)]
    saver = Saver(Path(folder), rank, WORLD_SIZE, {"job": {"key": "benchmark"}}, keep=2, most_failures=1)
    saver.save(1, fragments, {})  # allocates the buffer: once a stage
    saver.wait()
    for n in range(2, 2 + 2 * REPEATS):
        started = time.monotonic()
        saver.save(n, fragments, {})
        if n % 2:
            saver.wait()
        seconds[rank * 2 * REPEATS + n - 2] = time.monotonic() - started
        _compute(1.0)
        saver.wait()


def _compute(duration_s: float) -> None:
    a = torch.randn(256, 256)
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        a = (a @ a).tanh()


def main() -> None:
    folder = tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None)
    context = multiprocessing.get_context("spawn")
    seconds = context.Array("d", WORLD_SIZE * 2 * REPEATS)
    processes = [context.Process(target=_rank, args=(rank, folder, seconds)) for rank in range(WORLD_SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    committed = len(checkpoints(Path(folder)))
    shutil.rmtree(folder)
    assert committed == 2, "the saves did not commit"
    slowest = [max(seconds[rank * 2 * REPEATS + n] for rank in range(WORLD_SIZE)) for n in range(2 * REPEATS)]
    behind, synchronous = median(slowest[0::2]), median(slowest[1::2])
    figures = {"blocked_s": round(behind, 4), "synchronous_s": round(synchronous, 4), "ratio": round(behind / synchronous, 4)}
    write_result_file("checkpoint_block", figures, {"ratio": f"<= {GOAL}"}, figures["ratio"] <= GOAL)


if __name__ == "__main__":
    main()

"""Training from the stream against rows that wait in memory, on a GPU: python -m benchmarks.gpu_stream [--tiny]

A random Llama of 1.24 billion parameters, packed rows of 4,096 of the mix, eight rows a step: rows through Ray Data as training gets them
(data/rows/stream.py), and the same rows from a list, by the same engine in turns. This row alone needs Ray.
Goal: at least 0.99 of the speed. Writes benchmarks/results/gpu_stream.json.
"""

import itertools
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu_steps import Workload

from benchmarks import gpu, gpu_steps
from benchmarks.mix import mixed_lengths
from benchmarks.tiny import made_store, plan_of, save_store
from console import door

GOAL, ROUNDS, STEPS, WARM_UP, STEP_ITEMS = 0.99, 3, 12, 3, 112


def streamed(tiny: bool, steps: int) -> dict[str, Any]:
    import torch

    from cluster.connect import connected
    from data.rows.flat_rows import rank_rows
    from data.rows.stream import RankShares, StreamSpec, iterate, step_spans

    shape = gpu_steps.TINY if tiny else gpu_steps.SHAPES["1b"]
    items = 4 if tiny else STEP_ITEMS
    store = made_store(mixed_lengths(STEPS * items), True, shape.vocabulary)
    capacity = 4096
    seconds: dict[str, list[float]] = {"stream": [], "memory": []}
    with tempfile.TemporaryDirectory() as place, connected(4):
        folder = Path(place)
        save_store(store, folder / "tokens")
        plan = plan_of(STEPS * items, items)
        plan.save(folder / "plan.npz")
        spec = StreamSpec(str(folder / "plan.npz"), str(folder / "tokens"), STEPS, capacity, "token")
        step = gpu_steps.ours(gpu_steps.Setting(shape, tiny), Workload(store, plan, capacity))
        waiting = list(rank_rows(plan, store, 0, 1, capacity, "token"))
        for _ in range(ROUNDS):
            [share] = RankShares({"s": spec}).configure({"s": step_spans(spec)}, 1, None, None)
            for kind, rows in (("stream", iterate(share["s"], 120)), ("memory", iter(waiting))):
                spent = []
                batches = itertools.groupby(rows, key=lambda row: row["step"])
                while True:
                    started = time.perf_counter()
                    batch = next(batches, None)
                    if batch is None:
                        break
                    step(list(batch[1]))
                    if not tiny:
                        torch.cuda.synchronize()
                    spent.append(time.perf_counter() - started)
                seconds[kind].append(median(spent[WARM_UP:]))
    share_of = median(memory / stream for stream, memory in zip(seconds["stream"], seconds["memory"], strict=True))
    return {"share": round(share_of, 4), "step_s": {kind: round(median(of), 4) for kind, of in seconds.items()}}


def judge(figures: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    share = figures["both"].get("share")
    return {"share": share}, (share or 0) >= GOAL


def main(argv: list[str] | None = None) -> None:
    gpu.compare("gpu_stream", __doc__, {"both": streamed}, {"share": f">= {GOAL}"}, judge, argv)


if __name__ == "__main__":
    door(main)

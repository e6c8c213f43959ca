"""Packed rows against padding on a GPU: python -m benchmarks.gpu_pack [--tiny]

A random Llama of 1.24 billion parameters on the mix of questions and documents (benchmarks/mix.py): our packed rows of 4,096, other ones at every step, and the same items
eight at a time padded to the longest, in a plain torch loop under autocast with fused AdamW and all logits: what padding costs, and what our step saves beside. Tokens are those that are no padding.
Goal: at least 3.4 times. Writes benchmarks/results/gpu_pack.json.
"""

from typing import Any

import numpy as np
from benchmarks.gpu_steps import Workload

from benchmarks import gpu, gpu_steps
from console import door
from data.rows.flat_rows import Row

GOAL, PADDED_BATCH = 3.4, 8


def padded(setting: gpu_steps.Setting, workload: Workload) -> gpu_steps.Step:
    """Items of the rows taken apart again, in an order that mixes lengths as a shuffled data set does."""
    import torch

    model = setting.model("sdpa", torch.float32)
    adamw = torch.optim.AdamW(model.parameters(), lr=gpu_steps.RATE, fused=not setting.tiny)

    def step(rows: list[Row]) -> None:
        items = [(row, start, end) for row in rows for start, end in zip(row["cu_seqlens"], row["cu_seqlens"][1:], strict=False)]
        order = np.random.default_rng(0).permutation(len(items))
        for first in range(0, len(items), PADDED_BATCH):
            batch = [items[n] for n in order[first : first + PADDED_BATCH]]
            width = max(end - start for _, start, end in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for n, (row, start, end) in enumerate(batch):
                part = torch.as_tensor(row["input_ids"][start:end])
                ids[n, : len(part)], mask[n, : len(part)] = part, 1
                labels[n, : len(part)] = torch.where(torch.as_tensor(row["loss_weight"][start:end]) > 0, part, -100)
            ids, mask, labels = (t.to(setting.device) for t in (ids, mask, labels))
            with torch.autocast(setting.device.type, dtype=torch.bfloat16):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
        adamw.step()
        adamw.zero_grad()

    return step


def run(make: gpu_steps.Make, tiny: bool, steps: int) -> dict[str, Any]:
    shape = gpu_steps.TINY if tiny else gpu_steps.SHAPES["1b"]
    work = gpu.packed_mix(steps + 1, 1, 1024, shape.vocabulary) if tiny else gpu.packed_mix(steps + gpu.WARM_UP, 8, 4096, shape.vocabulary)
    return gpu.measure(gpu_steps.Setting(shape, tiny), make, work)


def judge(figures: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    times = gpu.over(figures, "packed", "padded")
    return {"times": times}, (times or 0) >= GOAL


def main(argv: list[str] | None = None) -> None:
    kinds = {"packed": lambda tiny, steps: run(gpu_steps.ours, tiny, steps), "padded": lambda tiny, steps: run(padded, tiny, steps)}
    gpu.compare("gpu_pack", __doc__, kinds, {"times": f">= {GOAL:g}"}, judge, argv)


if __name__ == "__main__":
    door(main)

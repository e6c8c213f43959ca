"""What keeping packed items apart costs: python -m benchmarks.gpu_mask [--tiny]

A random Llama of 1.24 billion parameters, our step, rows of 4,096 of the mix (benchmarks/mix.py), other ones at every step: each item sees itself only, against the same
tokens as one item a row under plain causal attention (which learns something else, and is how rows are packed where nobody masks).
Goal: at most 1.05 times the seconds. Writes benchmarks/results/gpu_mask.json.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.gpu_steps import Workload

from benchmarks import gpu, gpu_steps
from console import door
from data.rows.flat_rows import Row

GOAL = 1.05


def as_one_item(row: Row) -> Row:
    length = len(row["input_ids"])
    return {**row, "position_ids": np.arange(length), "cu_seqlens": np.array([0, length], dtype=np.int32)}


@dataclass(frozen=True)
class OneItem(Workload):
    """The same tokens, each row one item. Its attention is told so; the lengths that rows are padded to are those of the rows with many."""

    def rows(self, step: int) -> list[Row]:
        return [as_one_item(row) for row in super().rows(step)]

    def longest(self) -> int:
        return self.row_tokens


def run(masked: bool, tiny: bool, steps: int, attention: str = "auto") -> dict[str, Any]:
    shape = gpu_steps.TINY if tiny else gpu_steps.SHAPES["1b"]
    work = gpu.packed_mix(steps + 1, 1, 1024, shape.vocabulary) if tiny else gpu.packed_mix(steps + gpu.WARM_UP, 8, 4096, shape.vocabulary)
    work = work if masked else OneItem(work.store, work.plan, work.row_tokens)
    return gpu.measure(gpu_steps.Setting(shape, tiny), lambda s, w: gpu_steps.ours(s, w, attention=attention), work)


def judge(figures: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    times = gpu.over(figures, "masked", "causal", "step_s")
    return {"times": times}, times is not None and times <= GOAL


def main(argv: list[str] | None = None) -> None:
    kinds = {
        "masked": lambda tiny, steps: run(True, tiny, steps),
        "causal": lambda tiny, steps: run(False, tiny, steps),
        # What auto would take without flash-attn, and what it might: for the choice, not for the goal.
        "masked_padded_sdpa": lambda tiny, steps: run(True, tiny, steps, "padded_sdpa"),
        "masked_varlen": lambda tiny, steps: run(True, tiny, steps, "by_item" if tiny else "varlen"),
    }
    gpu.compare("gpu_mask", __doc__, kinds, {"times": f"<= {GOAL}"}, judge, argv)


if __name__ == "__main__":
    door(main)

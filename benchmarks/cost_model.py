"""The planner's speed against published rows: python -m benchmarks.cost_model

benchmarks/published_speeds.csv holds what others have measured, one training run a row: llm-foundry (scripts/train/benchmarking/README.md),
torchtitan (docs/performance.md of 2024), fms-fsdp (README.md). Of llm-foundry's H100 and A100 80 GB rows six each are fitted, by one number
a chip (the share of the peak that matrix products reach); all others are held out, as are the other projects and the A100 40 GB. Goal: every
row within 15 %. Writes benchmarks/results/cost_model.json. Needs no GPU; cluster/cost/chips.py must hold what it fits (tests/cluster/test_speed.py).
"""

import csv
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.result_file import write_result_file
from cluster.cost.chips import CHIPS, Hardware, make_hardware
from cluster.cost.memory import SetUp
from cluster.cost.model_shape import ModelShape
from cluster.cost.speed import StepLoad, step_time

GOAL = 0.15
ROWS = Path(__file__).with_name("published_speeds.csv")


@dataclass(frozen=True)
class Published:
    name: str
    shape: ModelShape
    hardware: Hardware
    set_up: SetUp
    load: StepLoad
    tokens_per_s: float
    """Per GPU, as published."""
    fitted: bool
    source: str

    def error(self, efficiency: float | None = None) -> float:
        """Modelled over published speed, minus one."""
        hardware, chip = self.hardware, self.hardware.chip
        if efficiency is not None and chip is not None:
            hardware = replace(hardware, chip=replace(chip, efficiency=efficiency))
        return self.load.tokens / step_time(self.shape, self.set_up, self.load, hardware).total / self.tokens_per_s - 1


def read_rows() -> list[Published]:
    with ROWS.open(newline="") as file:
        return [_row(values) for values in csv.DictReader(file)]


def _row(v: dict[str, str]) -> Published:
    hidden, heads = int(v["hidden_size"]), int(v["heads"])
    shape = ModelShape(
        hidden, int(v["layers"]), int(v["intermediate_size"]), heads, int(v["kv_heads"]), hidden // heads, int(v["vocab_size"]), v["tied"] == "yes"
    )  # fmt: skip
    item, items, micro_steps = int(v["tokens_per_item"]), int(v["items_per_micro_step"]), int(v["micro_steps"])
    return Published(
        f"{v['source']} {v['model']}, items of {item}, {v['gpus']}×{v['chip']}, {items} a micro-step",
        shape,
        make_hardware(int(v["gpus"]), CHIPS[v["chip"]]),
        SetUp(3, item * items, v["recompute"] == "yes"),
        StepLoad(item * items * micro_steps, micro_steps, item),
        float(v["tokens_per_s_per_gpu"]),
        v["use"] == "fit",
        v["source"],
    )


def fitted_efficiency(rows: list[Published], chip: str) -> float:
    """The efficiency with the smallest squared error over the chip's fitted rows, in steps of 0.004."""
    mine = [row for row in rows if row.fitted and row.hardware.chip and row.hardware.chip.name == chip]
    candidates = [n * 0.004 for n in range(75, 250)]
    return round(min(candidates, key=lambda e: sum(row.error(e) ** 2 for row in mine)), 3)


def main() -> None:
    rows = read_rows()
    efficiency = {chip: fitted_efficiency(rows, chip) for chip in ("A100-80G", "H100")}
    errors = {row.name: round(row.error(efficiency["H100" if "H100" in row.name else "A100-80G"]), 3) for row in rows}
    groups = {
        "fitted": [row for row in rows if row.fitted],
        "held out, llm-foundry": [row for row in rows if not row.fitted and row.source == "llm-foundry"],
        "held out, other projects": [row for row in rows if row.source != "llm-foundry"],
    }
    summary = {
        name: {
            "rows": len(members),
            "worst": max(abs(errors[row.name]) for row in members),
            "median": round(statistics.median(abs(errors[row.name]) for row in members), 3),
        }
        for name, members in groups.items()
    }
    figures = {"efficiency": efficiency, "summary": summary, "modelled_over_published_minus_1": errors}
    outside = [name for name, error in errors.items() if abs(error) > GOAL]
    goal = {"every row": f"within {GOAL:.0%}"}
    write_result_file("cost_model", figures, goal, not outside, outside=outside)


if __name__ == "__main__":
    main()

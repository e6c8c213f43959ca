"""The tiny forms of benchmarks/steps/real_step.py and benchmarks/steps/step_shape.py, this build's part: run by tests/test_benchmarks.py in a process of its own."""

import json
from pathlib import Path

from benchmarks import real_step_kind, step_shape, step_shape_kind


def main(out: Path, world_size: int, rank: int) -> None:
    rows = real_step_kind.made_rows("tiny", 2)
    made = {kind: real_step_kind.trainer_step("tiny", kind) for kind in ("ours", "ours_by_deepspeed")} | {
        "torch": real_step_kind.torch_step("tiny")
    }
    losses = {kind: [step(row) for row in rows] for kind, step in made.items()}
    plans = step_shape.tiny_plan_into(out)
    counts = {
        str(static): step_shape_kind.counted(out / f"{plans[0]}.npz", 3, "by_item", 1, mode, static)
        for static, mode in ((True, "checkpointing"), (False, "full"))
    }
    found = {
        "losses": losses,
        "rows": [len(row["input_ids"]) for row in rows],
        "counts": counts,
        "fill": step_shape.fill_of(out / f"{plans[0]}.npz"),
        "loss": step_shape_kind.loss_bytes(512, 4096),
    }
    (out / "found.json").write_text(json.dumps(found))

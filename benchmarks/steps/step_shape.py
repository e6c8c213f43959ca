"""What a training step asks of kernels, counted: python -m benchmarks.step_shape [--tiny]

No clock and no GPU: three real plans (the film data's, the bioS demo's, the mix of benchmarks/mix.py), under ZeRO 0, 1 and 3, with all weights, LoRA and gradient
checkpointing, on a tiny Llama; a hundred steps under ZeRO-1 with all weights, ten under the others. Counted: shapes that reach attention (on a GPU each is planned, and
compiled, for itself), operations that reach the dispatcher a micro-step, those of them that Python or autograd asks for, graphs and breaks where layers are compiled, and the
bytes that the loss holds; what is asked also of thirty layers (SmolLM2's), where what does not grow with them counts little. Ours with static shapes, as on GPUs, the same with layers compiled, and with exact shapes, as on CPUs; beside them the build of 06945e2, out of git.
Goal: with static shapes one attention shape and one or two graphs for each length of the ladder (nine at most), no break, at least 97 % of tokens real on the film and bioS
plans, and compiled at most a fifth of what the old build asks of the dispatcher, by the engine that one process trains with; what DeepSpeed's asks, that of several, stands
beside. Writes benchmarks/results/step_shape.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.real_step import BEFORE, ROOT, build_of

from benchmarks.mix import mixed_lengths
from benchmarks.result_file import write_result_file
from console import RunError, door, say
from data.curriculum.plan import Plan
from data.rows.static_rows import best_row_tokens, fill, static_shapes
from trainer.config import MOST_ROW_TOKENS

ROW_TOKENS, STEPS, FEWER_STEPS = 4096, 100, 10
DEPTH = 30
"""Layers of SmolLM2-135M: of two, what does not grow with them would be most of what is asked."""
ZERO, MODES = (0, 1, 3), ("full", "lora", "checkpointing")
MOST_SHAPES, MOST_GRAPHS, FILL, MOST_CALLED = 9, 18, 0.97, 0.2
FILM = ROOT.parent / "shared" / "data" / "wiki2023_film"


def write_plan(path: Path, plan: Plan, lengths: Any, capacity: int = ROW_TOKENS) -> None:
    np.savez(path, items=plan.items, starts=plan.starts, lengths=np.asarray(lengths).clip(max=capacity), capacity=capacity)


def of_experiment(path: Path, name: str, *overrides: str) -> None:
    """The longest stage of an experiment, as the trainer compiles it."""
    from cluster.workload import workload_of
    from experiment import load_experiment

    stages = workload_of(load_experiment(ROOT / "experiments" / name, list(overrides))).stages
    longest = max(stages, key=lambda stage: stage.steps)
    capacity = best_row_tokens([(longest.plan, longest.lengths)], 1, int(np.max(longest.lengths)), MOST_ROW_TOKENS)[
        0
    ]  # as trainer.row_tokens: auto
    write_plan(path, longest.plan, longest.lengths, capacity)


def plans_into(folder: Path) -> list[str]:
    lengths = mixed_lengths(32 * STEPS)
    write_plan(folder / "mix.npz", Plan(np.arange(len(lengths)), np.arange(0, len(lengths) + 1, 32), ""), lengths)
    of_experiment(folder / "bios.npz", "bios_cpu.yaml")
    there = [f"data.root={FILM}"] if FILM.is_dir() and (ROOT / ".real-model").exists() else []  # else from the declared counts and tokens
    of_experiment(folder / "film.npz", "wiki2023_smollm2.yaml", *there)
    return ["film", "bios", "mix"]


def tiny_plan_into(folder: Path) -> list[str]:
    lengths = mixed_lengths(60).clip(max=200)
    write_plan(folder / "mix.npz", Plan(np.arange(60), np.arange(0, 61, 12), ""), lengths, 512)
    return ["mix"]


def fill_of(path: Path) -> float:
    """Share of real tokens of a whole plan with static shapes."""
    with np.load(path) as saved:
        plan, lengths, capacity = Plan(saved["items"], saved["starts"], ""), saved["lengths"], int(saved["capacity"])
    return fill(static_shapes(plan, lengths, 1, capacity, capacity), plan, lengths, 1, capacity, capacity)


def counts_of(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-P", str(ROOT / "benchmarks/steps/step_shape_kind.py"), json.dumps(asked)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(root)}, cwd=root, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        answer: dict[str, Any] = {}
        for line in process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "told" in answer:
                    say(answer["told"])
        if process.wait() or "counts" not in answer:
            log.seek(0)
            raise RunError(f"counting ended: {log.read()[-2000:]}")
    return answer


def measure(tiny: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place, build_of(BEFORE) as before:
        plans = (tiny_plan_into if tiny else plans_into)(Path(place))
        full = {plan: round(fill_of(Path(place) / f"{plan}.npz"), 4) for plan in plans}
        asked: dict[str, Any] = {"folder": place, "plans": plans, "steps": 2 if tiny else STEPS, "fewer_steps": FEWER_STEPS}
        asked |= {"zero": [1] if tiny else ZERO, "modes": ["full"] if tiny else MODES}
        found = {}
        for name, (root, attention, static, compiled) in {
            "static": (ROOT, "by_item", True, False),
            "exact": (ROOT, "by_item", False, False),
            "compiled": (ROOT, "by_item", True, True),
            "before": (before, "padded_sdpa", False, False),
        }.items():
            say(f"step_shape: {name}")
            found[name] = counts_of(
                root,
                {
                    **asked, "attention": attention, "static": static, "compiled": compiled,
                    "deep": DEPTH * (name in ("compiled", "before")), "engines": ["alone", "sharded"] if name == "compiled" else ["sharded"],
                },
            )  # fmt: skip
    counts, deep = ({name: of[part] for name, of in found.items()} for part in ("counts", "deep"))
    share = {engine: called_share(of, deep["before"]["sharded"]) for engine, of in deep["compiled"].items()}
    return {
        "attention_shapes": {
            name: max(one["attention_shapes"] for one in of.values()) for name, of in counts.items() if name != "compiled"
        },
        "graphs": max(one["graphs"] for one in counts["compiled"].values()),
        "breaks": sum(one["breaks"] for one in counts["compiled"].values()),
        "fill": full,
        "called_share": share["alone"],
        "called_share_sharded": share["sharded"],
        **found,
    }


def called_share(ours: dict[str, Any], before: dict[str, Any]) -> float:
    """Of what the old build asks a micro-step, in the worst case."""
    return round(max(one["called_a_micro_step"] / before[case]["called_a_micro_step"] for case, one in ours.items()), 3)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_shape", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="two steps of one plan under one setting; writes no result")
    arguments = parser.parse_args(argv)
    figures = measure(arguments.tiny)
    if arguments.tiny:
        say(json.dumps(figures, indent=1))
        return
    few = figures["attention_shapes"]["static"] <= MOST_SHAPES and figures["graphs"] <= MOST_GRAPHS and not figures["breaks"]
    full = min(figures["fill"][plan] for plan in ("film", "bios")) >= FILL
    goal = {
        "attention_shapes": f"static <= {MOST_SHAPES}",
        "graphs": f"<= {MOST_GRAPHS}",
        "breaks": "0",
        "fill": f"film and bios >= {FILL}",
        "called_share": f"<= {MOST_CALLED}",
    }
    write_result_file("step_shape", figures, goal, few and full and figures["called_share"] <= MOST_CALLED)


if __name__ == "__main__":
    door(main)

"""Does pre-instruction-tuning teach more, and is it luck? python -m benchmarks.pit_effect [--seeds 5]

experiments/pit_effect.yaml (the demo's world) with several seeds, each with other people, another base and another order; arms with equally
many optimiser steps after the base, and two with equally many epochs. Trains in one process (`--no-ray`), so that several of these can run side
by side; what is trained already is not trained again. About 10 minutes a seed and core.
Goal: PIT − standard ≥ 25 points of exact match over at least 5 seeds, steps matched. Intervals resample seeds, then documents.
Writes benchmarks/results/pit_effect.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.result_file import write_result_file
from evaluation.report.seeds import across_seeds

EXPERIMENT = "experiments/pit_effect.yaml"
PAIRS = [
    ("pit", "standard"), ("pit", "mix"), ("pit", "cpt"), ("pit_plus_plus", "pit"), ("mix", "standard"), ("standard", "cpt"),
    ("pit", "standard_unmatched"), ("pit", "cpt_unmatched"),
]  # fmt: skip
GOAL = 25.0


def run_seed(experiment: str, name: str, seed: int) -> Path:
    """Trains and examines one seed; returns its run folder."""
    name = f"{name}-{seed}"
    settings = [f"seed={seed}", f"name={name}"]
    subprocess.run([sys.executable, "-m", "trainer", experiment, *settings, "--no-ray", "--no-exam"], check=True)
    subprocess.run([sys.executable, "-m", "evaluation", experiment, *settings], check=True, stdout=subprocess.DEVNULL)
    return Path("runs") / name


def points(estimate: dict[str, Any]) -> dict[str, Any]:
    """In points of 100, to a tenth."""
    rounded = {key: round(100 * estimate[key], 1) for key in ("mean", "low", "high")}
    return {**rounded, "by_seed": [round(100 * value, 1) for value in estimate["by_seed"]]}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.pit_effect", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    folders = [run_seed(EXPERIMENT, "pit-effect", seed) for seed in range(seeds)]
    found = across_seeds(folders, PAIRS)
    steps = {name: arm["steps"] for name, arm in json.loads((folders[0] / "arms.json").read_text())["arms"].items()}
    figures = {
        "seeds": found["seeds"],
        "steps": steps,
        "em": {name: points(estimate) for name, estimate in found["arms"].items()},
        "differences": {f"{a} - {b}": points(found["differences"][a][b]) for a, b in PAIRS},
    }
    effect = figures["differences"]["pit - standard"]["mean"]
    goal = {"pit - standard": f">= {GOAL:g} points, steps matched", "seeds": ">= 5"}
    write_result_file("pit_effect", figures, goal, effect >= GOAL and seeds >= 5)


if __name__ == "__main__":
    main()

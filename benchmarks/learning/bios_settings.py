"""The paper's other settings in the demo's world: python -m benchmarks.bios_settings [--seeds 3]

experiments/bios_settings_cpu.yaml with several seeds, with the demo's dials (steps are not matched: benchmarks/learning/pit_effect.py does that for the five
arms that matter most). About 15 minutes a seed and core. No goal: what comes out stands in docs/curricula.md beside the paper's numbers.
Writes benchmarks/results/bios_settings.json.
"""

import argparse
import json

from benchmarks.pit_effect import points, run_seed

from benchmarks.result_file import write_result_file
from evaluation.report.seeds import across_seeds


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.bios_settings", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    folders = [run_seed("experiments/bios_settings_cpu.yaml", "bios-settings", seed) for seed in seeds]
    found = across_seeds(folders, pairs=[])
    steps = {name: arm["steps"] for name, arm in json.loads((folders[0] / "arms.json").read_text())["arms"].items()}
    figures = {"seeds": found["seeds"], "steps": steps, "em": {name: points(estimate) for name, estimate in found["arms"].items()}}
    write_result_file("bios_settings", figures, {}, len(folders) > 1)


if __name__ == "__main__":
    main()

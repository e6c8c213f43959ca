"""Is a fact bound to the wording of its question, and do several trained wordings free it? python -m benchmarks.wordings [--seeds 5]

experiments/wordings.yaml (the demo's world) with several seeds: PIT practised in 1, 2, 4 and 8 wordings of each question, the same items in the same steps, then
asked in the first of them and in four that were never trained. Trains in one process (`--no-ray`); what is trained already is not trained again. About 8
minutes a seed on an idle core.
Goal: the worst wording that was never trained, after practice in eight, >= 50 EM over at least 5 seeds. Intervals resample seeds, then documents.
Writes benchmarks/results/wordings.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pit_effect import points, run_seed

from benchmarks.result_file import write_result_file
from evaluation.report.seeds import over_seeds
from evaluation.score_files import Score, closed, newest_score, trained_arms

EXPERIMENT = "experiments/wordings.yaml"
GOAL = 50.0
RESAMPLES = 4000
Rows = list[dict[str, Any]]


def in_wordings(score: Score) -> list[Rows]:
    """Test rows as trained, then in each other wording."""
    others: dict[str, Rows] = {}
    for row in closed(score.rows, "wordings"):
        others.setdefault(row["question_id"], []).append(row)
    return [closed(score.rows, "test"), *map(list, zip(*others.values(), strict=True))]


def estimate(rows_of_seeds: Sequence[Rows]) -> dict[str, Any]:
    values = [[row["em"] for row in rows] for rows in rows_of_seeds]
    found = over_seeds(rows_of_seeds, values, RESAMPLES)
    return points({"mean": found.mean, "low": found.low, "high": found.high, "by_seed": [sum(of) / len(of) for of in values]})


def in_all(wordings: Sequence[Rows]) -> Rows:
    """Right in every one."""
    return [{**of[0], "em": min(row["em"] for row in of)} for of in zip(*wordings, strict=True)]


def figures_of(folders: Sequence[Path]) -> dict[str, Any]:
    """By arm EM in %: "trained", "others" (each), "worst" of them by its mean over seeds, "all" wordings at once; and what practice in more brought back."""
    scores = [{arm.name: newest_score(folder, arm) for arm in trained_arms(folder)[0]} for folder in folders]
    found: dict[str, Any] = {"trained": {}, "others": {}, "worst": {}, "all": {}}
    for name in scores[0]:
        of_seeds = [in_wordings(score) for of in scores if (score := of[name]) is not None]
        assert len(of_seeds) == len(folders), f"{name}: not examined in every seed"
        trained, *others = (estimate([of[n] for of in of_seeds]) for n in range(len(of_seeds[0])))
        worst = min(range(len(others)), key=lambda n: others[n]["mean"])
        found["trained"][name], found["others"][name] = trained, others
        found["worst"][name] = {"wording": worst + 1, **others[worst]}
        found["all"][name] = estimate([in_all(of) for of in of_seeds])
    one, eight = found["worst"]["pit_1"]["mean"], found["worst"]["pit_8"]["mean"]
    lost = found["trained"]["pit_1"]["mean"] - one
    found["brought_back"] = {"lost with one": round(lost, 1), "back with eight": round(eight - one, 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.wordings", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    folders = [run_seed(EXPERIMENT, "wordings", seed) for seed in range(seeds)]
    steps = {name: arm["steps"] for name, arm in json.loads((folders[0] / "arms.json").read_text())["arms"].items()}
    figures = {"seeds": list(range(seeds)), "steps": steps, **figures_of(folders)}
    goal = {"worst of pit_8": f">= {GOAL:g} EM", "seeds": ">= 5"}
    write_result_file("wordings", figures, goal, figures["worst"]["pit_8"]["mean"] >= GOAL and seeds >= 5)


if __name__ == "__main__":
    main()

"""Which way of teaching new documents teaches most, and forgets least? python -m benchmarks.teaching_table [--seeds 5]

experiments/teaching_table.yaml with several seeds: standard and PIT++ and what came since (text in many forms, a teacher that has the document in view,
replay, an anchor), alone and together, at equal training tokens. Trains in one process (`--no-ray`); what is trained already is not trained again, and the
result is written after every seed, so that the command goes on where it was stopped.
Replay EM is of questions that no arm trains again, so it says what was kept and not what was practised.
Goal: an arm ≥ 10 points above PIT++ closed, or none below it by more than its interval with replay EM ≥ 90; the best in other wordings ≥ 50.
Intervals resample seeds, then documents. Writes benchmarks/results/teaching_table.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.pit_effect import points, run_seed
from benchmarks.wordings import estimate, in_wordings

from benchmarks.result_file import write_result_file
from console import RunError
from data.curriculum.catalogue import catalogue_of
from data.curriculum.plan import load_plan
from data.load import load_corpus
from evaluation.report.seeds import across_seeds
from evaluation.score_files import newest_score, trained_arms
from experiment import load_experiment

EXPERIMENT = "experiments/teaching_table.yaml"
AGAINST = "pit_plus_plus"
EQUAL = 1.01
"""Most tokens of the arm that trains most, by those of the one that trains least."""
GOALS = {"points over PIT++": 10.0, "replay EM": 90.0, "other wordings": 50.0}
Table = dict[str, dict[str, Any]]


def figures_of(folders: Sequence[Path]) -> dict[str, Any]:
    """By arm: cost, EM of test, replay and train closed, of test with its document in view, in other wordings; and paired differences from PIT++."""
    cost = _cost(folders)
    refuse_unequal(cost)
    arms = [name for name in json.loads((folders[0] / "arms.json").read_text())["arms"] if name not in ("base", AGAINST)]
    pairs = [(name, AGAINST) for name in arms]
    practised = {folder: practised_again(folder, seed) for seed, folder in enumerate(folders)}
    closed = across_seeds(folders, pairs)
    replay = across_seeds(folders, pairs, set_name="replay", without=practised)
    looks = {
        "closed": closed, "replay": replay, "train": across_seeds(folders, [], set_name="train"), "open": across_seeds(folders, [], mode="open"),
    }  # fmt: skip
    em: Table = {}
    for look, found in looks.items():
        for name, value in found["arms"].items():
            em.setdefault(name, {})[look] = points(value)
    for name, value in _other_wordings(folders).items():
        em[name]["other wordings"] = value
    return {
        "seeds": closed["seeds"],
        "replay_questions": replay["arms"][AGAINST]["questions"],
        "cost": cost,
        "em": em,
        "closed, against PIT++": {name: points(closed["differences"][name][AGAINST]) for name in arms},
        "replay, against PIT++": {name: points(replay["differences"][name][AGAINST]) for name in arms},
    }


def practised_again(folder: Path, seed: int) -> set[str]:
    """Ids of the replay questions that a stage of any arm trains after the base: scores on them would say what was practised, not what was kept."""
    experiment = load_experiment(EXPERIMENT, [f"seed={seed}"])
    catalogue = catalogue_of(load_corpus(experiment.data, seed))
    numbers = catalogue.ranges["replay_questions"]
    arms = json.loads((folder / "arms.json").read_text())["arms"]
    begun = set(arms["base"]["stages"])
    keys = {key for arm in arms.values() for key in arm["stages"]} - begun
    jobs = [json.loads((folder / "stages" / key / "manifest.json").read_text())["job"] for key in keys]
    trained = np.unique(np.concatenate([load_plan(Path(job["plan_path"])).items for job in jobs]))
    return {catalogue.ids[item].partition("/")[2] for item in trained[(trained >= numbers.start) & (trained < numbers.stop)]}


def refuse_unequal(cost: dict[str, Any]) -> None:
    """The table compares arms at equal training tokens."""
    tokens = {name: arm["tokens"] for name, arm in cost.items() if name != "base"}
    if max(tokens.values()) > EQUAL * min(tokens.values()):
        raise RunError(f"arms have trained unequal numbers of tokens: {tokens}")


def _other_wordings(folders: Sequence[Path]) -> dict[str, Any]:
    """Of each arm the worst of the wordings that no stage trains."""
    scores = [{arm.name: newest_score(folder, arm) for arm in trained_arms(folder)[0]} for folder in folders]
    found = {}
    for name in scores[0]:
        of_seeds = [in_wordings(score)[1:] for of in scores if (score := of.get(name)) is not None]
        if len(of_seeds) == len(folders) and all(of_seeds):
            each = [estimate([of[n] for of in of_seeds]) for n in range(len(of_seeds[0]))]
            found[name] = min(each, key=lambda one: float(one["mean"]))
    return found


def _cost(folders: Sequence[Path]) -> dict[str, Any]:
    """Of the first seed: what each arm trains after the base; and the seconds of each teacher's pass, of the stage that it serves."""
    arms = json.loads((folders[0] / "arms.json").read_text())["arms"]
    cost: dict[str, Any] = {}
    for name, arm in arms.items():
        manifests = [json.loads((folders[0] / "stages" / key / "manifest.json").read_text()) for key in arm["stages"]]
        passes = [(m["teacher"]["seconds"], m["totals"]["seconds"]) for m in manifests if "teacher" in m]
        teacher = {"teacher_share_of_stage": [round(a / b, 2) for a, b in passes]} if passes else {}
        cost[name] = {"steps": arm["steps"], "tokens": arm["tokens"], **teacher}
    return cost


def reached(figures: dict[str, Any]) -> bool:
    em, gained = figures["em"], figures["closed, against PIT++"]
    ahead = any(gap["mean"] >= GOALS["points over PIT++"] for gap in gained.values())
    kept = any(gap["high"] >= 0 and em[name]["replay"]["mean"] >= GOALS["replay EM"] for name, gap in gained.items())
    return (ahead or kept) and max(arm["other wordings"]["mean"] for arm in em.values()) >= GOALS["other wordings"]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.teaching_table", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    folders: list[Path] = []
    for seed in range(seeds):
        folders.append(run_seed(EXPERIMENT, "teaching-table", seed))
        figures = figures_of(folders)
        write_result_file("teaching_table", figures, {**GOALS, "seeds": ">= 5"}, reached(figures) and len(folders) >= 5)


if __name__ == "__main__":
    main()

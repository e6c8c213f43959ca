"""The paper's eight settings trained as one experiment, and each in an experiment of its own: python -m benchmarks.shared_prefix [FOLDER]

What begins alike is trained once (trainer/store/stages.py). Counted are the optimiser steps of the stages that were really trained in each run
folder; compared are the hashes of every arm's weights and every answer of the exam, question by question. One process, no Ray Train;
what lies in FOLDER already (default runs/shared-prefix) is not trained again. Five minutes on one core.
Goal: at most 0.45 of the steps with the base counted, at most 0.85 without, equal weights, equal answers.
Writes benchmarks/results/shared_prefix.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data.curriculum.arms import compile_arms, stage_graph
from data.curriculum.catalogue import declared_catalogue
from experiment import Experiment, load_experiment

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = "experiments/shared_prefix_cpu.yaml"
PAPER_FILE = "experiments/wiki2023_llama2_7b.yaml"
GOAL = {"ratio": 0.45, "ratio_without_base": 0.85}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_prefix", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/shared-prefix"))
    folder = parser.parse_args().folder.resolve()
    started = time.monotonic()
    experiment = load_experiment(ROOT / FILE)
    together = train(experiment, folder / "together", {})
    alone = {
        arm: train(experiment, folder / f"alone-{arm}", {"arms": json.dumps({arm: described.model_dump(exclude_defaults=True)})})
        for arm, described in experiment.arms.items()
    }
    answers = exam(experiment, folder, together, alone)
    figures = compare(experiment, together, alone, answers)
    figures["minutes"] = round((time.monotonic() - started) / 60, 1)
    result = {
        "name": "shared_prefix",
        "ratio": figures["ratio"],
        "figures": figures,
        "paper": plan_of_the_paper(),
        "goal": {**{key: f"<= {value:g}" for key, value in GOAL.items()}, "weights": "identical", "answers": "identical"},
        "holds": all(figures[key] <= value for key, value in GOAL.items())
        and figures["identical_weights"]
        and figures["identical_answers"],
        "environment": environment(),
    }
    path = Path(__file__).parent.parent / "results" / "shared_prefix.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def train(experiment: Experiment, runs: Path, changes: dict[str, str]) -> Path:
    """`python -m trainer` as a user would call it; returns the run folder."""
    print(f"training {runs.name}", file=sys.stderr)
    overrides = [f"runs={runs}", *(f"{key}={value}" for key, value in changes.items())]
    command = [sys.executable, "-m", "trainer", FILE, *overrides, "--no-ray", "--no-exam"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return runs / experiment.name


def exam(experiment: Experiment, folder: Path, together: Path, alone: dict[str, Path]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{"together" or "alone": {arm: rows}}. One engine loads all seventeen checkpoints, each from its own folder."""
    from cluster.connect import connected
    from data.load import load_corpus
    from evaluation.exam import build_exam
    from evaluation.examining.examine import engine_options, examine
    from evaluation.score_files import is_scored, read_arms, read_score, score_stem

    corpus = load_corpus(experiment.data, experiment.seed)
    paper = build_exam(corpus, experiment.exam, experiment.seed)
    asked = {"together": [arm for arm in read_arms(together, corpus.fingerprint()) if arm.name != "base"], "alone": []}
    for name, run in alone.items():
        asked["alone"] += [arm for arm in read_arms(run, corpus.fingerprint()) if arm.name == name]
    stems = {way: {arm.name: score_stem(folder / "exam" / way, arm, paper.fingerprint()) for arm in arms} for way, arms in asked.items()}
    todo = {way: [arm for arm in arms if not is_scored(stems[way][arm.name])] for way, arms in asked.items()}
    if any(todo.values()):
        with connected(cpus_needed=1):
            for way, arms in todo.items():
                if reasons := examine(arms, paper, folder / "exam" / way, experiment.seed, engine_options(experiment.exam, 0)):
                    raise RuntimeError(str(reasons))
    return {way: {name: read_score(stem).rows for name, stem in of.items()} for way, of in stems.items()}  # type: ignore[union-attr]


def compare(experiment: Experiment, together: Path, alone: dict[str, Path], answers: dict[str, Any]) -> dict[str, Any]:
    """Steps of the stages that lie in the folders, and whether every arm came out alike."""
    steps = {"together": trained_steps(together), **{arm: trained_steps(run) for arm, run in alone.items()}}
    base = base_steps(together)
    apart = sum(steps[arm] for arm in alone)
    weights = {arm: (final_weights(together, arm), final_weights(run, arm)) for arm, run in alone.items()}
    told = {way: {arm: [(r["question_id"], r["answer"], r["em"]) for r in rows] for arm, rows in of.items()} for way, of in answers.items()}
    return {
        "settings": list(experiment.arms),
        "steps": steps["together"],
        "steps_of_eight_runs": apart,
        "steps_of_the_base": base,
        "ratio": round(steps["together"] / apart, 4),
        "ratio_without_base": round((steps["together"] - base) / (apart - len(alone) * base), 4),
        "steps_of_each_run": {arm: steps[arm] for arm in alone},
        "stages_trained": {"together": num_stages(together), "alone": sum(map(num_stages, alone.values()))},
        "seconds_trained": {"together": seconds(together), "alone": round(sum(map(seconds, alone.values())), 1)},
        "shared": shared_stages(together),
        "identical_weights": all(ours == theirs for ours, theirs in weights.values()),
        "weights_sha256": {arm: ours for arm, (ours, _) in weights.items()},
        "identical_answers": told["together"] == told["alone"],
        "answers_compared": sum(map(len, told["alone"].values())),
        "test_em": {arm: mean_em(rows, "test") for arm, rows in answers["alone"].items()},
        "train_em": {arm: mean_em(rows, "train") for arm, rows in answers["alone"].items()},
    }


def manifests(run: Path) -> list[dict[str, Any]]:
    """Of every stage that was trained and committed in a run folder."""
    return [json.loads(path.read_text()) for path in sorted((run / "stages").glob("*/manifest.json"))]


def trained_steps(run: Path) -> int:
    return sum(manifest["totals"]["steps"] for manifest in manifests(run))


def num_stages(run: Path) -> int:
    return len(manifests(run))


def seconds(run: Path) -> float:
    return round(sum(manifest["totals"]["seconds"] for manifest in manifests(run)), 1)


def arms_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "arms.json").read_text())["arms"]


def base_steps(run: Path) -> int:
    return arms_of(run)["base"]["steps"]


def final_weights(run: Path, arm: str) -> str:
    return json.loads((run / "stages" / arms_of(run)[arm]["stage"] / "manifest.json").read_text())["weights_sha256"]


def shared_stages(run: Path) -> dict[str, list[str]]:
    """What each stage that more than one arm uses is, and which arms."""
    arms = arms_of(run)
    users = {
        m["job"]["key"]: [arm for arm, of in arms.items() if arm != "base" and m["job"]["key"] in of["stages"]] for m in manifests(run)
    }
    names = {m["job"]["key"]: f"{m['job']['label'].split(': ')[1]}, {m['job']['num_steps']} steps" for m in manifests(run)}
    return {names[key]: of for key, of in users.items() if len(of) > 1}


def mean_em(rows: list[dict[str, Any]], name: str) -> float:
    ems = [row["em"] for row in rows if row["set"] == name]
    return round(sum(ems) / len(ems), 4)


def plan_of_the_paper() -> dict[str, Any]:
    """The same count for the 7B file with the paper's own dials, planned only: its base is a pretrained model and costs no step."""
    experiment = load_experiment(ROOT / PAPER_FILE)
    arms = {"base": experiment.stages("base"), **{arm: experiment.stages(arm) for arm in experiment.arms}}
    plans = compile_arms(arms, declared_catalogue(experiment.data.counts), experiment.seed)
    steps, apart = stage_graph(arms, plans).num_steps(), sum(plan.num_steps for of in plans.values() for plan in of)
    return {"file": PAPER_FILE, "planned_steps": steps, "planned_steps_of_eight_runs": apart, "ratio_without_base": round(steps / apart, 4)}


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10).stdout.strip()
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "commit": commit, "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    main()

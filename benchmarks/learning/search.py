"""What early stopping costs and saves: python -m benchmarks.search [--seeds 3] [--runs runs]

A grid of 4 rates × 4 epoch counts (experiments/bios_cpu_search.yaml) is really trained to its end for every seed, with a look at 12.5, 25, 50
and 100 % of each trial's own schedule. Schedulers are then replayed over these curves: successive halving, and Ray Tune's ASHA, one trial at a time, in random orders
of the trials, on validation documents that are resampled in every replay; a trial costs the tokens of the stage in which trials differ, up to
where it was stopped. Regret: exact match, in points, of the grid's best trial on the resampled questions minus that of the scheduler's pick
on the same; on the test (other documents): that of the trial which the whole grid would have picked minus the scheduler's pick.
One process; about 20 minutes a seed and core; what is trained already is not trained again.
Goal: regret ≤ 2 points in ≥ 90 % of the replays with ≤ 40 % of the grid's tokens. Writes benchmarks/results/search.json.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from benchmarks.result_file import write_result_file
from console import Command
from evaluation.exam import Exam
from evaluation.score_files import TrainedArm, closed, is_scored, read_score, score_stem
from experiment import load_experiment
from tune.config import SearchConfig
from tune.deciding.ledger import Ledger, Row, Rung
from tune.deciding.signals import BAD_SIDE, measured
from tune.deciding.stopping import cut

EXPERIMENT = "experiments/bios_cpu_search.yaml"
SETTINGS = [
    "search.max_concurrent=1",
    "search.keep_best=16",
    "search.stopping.scheduler=none",
    "search.stopping.first_rung=0.125",
    "search.stopping.reduction=2",
]
CHOSEN = "halving, 12.5 and 50 %, quartering"
HALVING = {CHOSEN: ([12.5, 50], 4), "halving, 12.5, 25 and 50 %, halving": ([12.5, 25, 50], 2), "halving, 25 and 50 %, halving": ([25, 50], 2),
           "halving, 25 %, quartering": ([25], 4), "halving, 12.5 %, to an eighth": ([12.5], 8)}  # fmt: skip
RUNGS = {"asha, from 12.5 %, halving": (12.5, 2), "asha, from 25 %, halving": (25, 2), "asha, from 50 %, halving": (50, 2),
         "asha, from 25 %, quartering": (25, 4), "asha, from 12.5 %, quartering": (12.5, 4), "no early stopping": (100, 2)}  # fmt: skip
GOAL_REGRET, GOAL_SHARE, GOAL_TOKENS = 2.0, 0.9, 0.4
REPLAYS = 500
CELLS = 16


@dataclass(frozen=True)
class Curves:
    """One seed's grid, C cells, P points of a schedule, V validation and T test documents."""

    values: list[dict[str, Any]]
    points: np.ndarray  # (P,), percent of a schedule
    correct: np.ndarray  # (C, P, V): right answers
    asked: np.ndarray  # (V,)
    test_correct: np.ndarray  # (C,): share
    tokens: np.ndarray  # (C, P), of the last stage
    signals: list[dict[str, float]]


def train_grid(seed: int, runs: str) -> Path:
    """The whole grid of one seed through `python -m tune`; returns its run folder."""
    name = f"search-benchmark-{seed}"
    if sum(row.state == "done" for row in Ledger(Path(runs) / name).rows()) == CELLS:
        return Path(runs) / name
    command = [sys.executable, "-m", "tune", EXPERIMENT, f"name={name}", f"seed={seed}", f"runs={runs}", *SETTINGS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Path(runs) / name


def examine_all(folders: dict[int, Path]) -> None:
    """Every cell sits the test, which a search lets its winner sit alone: the truth that picks are judged by."""
    from cluster.connect import connected
    from evaluation.examining.examine import engine_options, examine

    options = engine_options(load_experiment(EXPERIMENT).exam, 0)
    todo = {}
    for seed, folder in folders.items():
        arms, exam = _test_of(folder, seed)
        todo[seed] = [(arm, exam) for arm in arms if not is_scored(_test_stem(folder, arm, exam))]
    if any(todo.values()):
        with connected(cpus_needed=1):
            for seed, asked in todo.items():
                if asked and (reasons := examine(asked, folders[seed] / "search" / "test-of-all", seed, options)):
                    raise RuntimeError(str(reasons))


def _test_of(folder: Path, seed: int) -> tuple[list[TrainedArm], Exam]:
    from data.corpus.validation import split_validation
    from data.load import load_corpus
    from evaluation.exam import build_exam

    experiment = load_experiment(EXPERIMENT, [f"seed={seed}"])
    config = experiment.exam.model_copy(update={"train_questions": 0, "replay_questions": 0, "documents": 0})
    _, test = split_validation(load_corpus(experiment.data, seed), config.validation_share, seed)
    arms = []
    for row in Ledger(folder).rows():
        stage = folder / "stages" / row.stages[-1]
        weights = json.loads((stage / "manifest.json").read_text())["weights_sha256"]
        hf = str((stage / "hf").resolve())
        arms.append(TrainedArm(row.id, hf, weights, None, False, {"hf": hf, "template": row.template}))
    return arms, build_exam(test, config, seed)


def _test_stem(folder: Path, arm: TrainedArm, exam: Exam) -> Path:
    return score_stem(folder / "search" / "test-of-all", arm, exam.fingerprint(arm.template))


def read_curves(folder: Path, seed: int) -> Curves:
    rows = Ledger(folder).rows()
    shares = [rung.share for rung in rows[0].rungs]
    documents: list[str] = []
    correct, tests = [], []
    arms, exam = _test_of(folder, seed)
    for row, arm in zip(rows, arms, strict=True):
        looks = []
        for share in shares:
            name = row.id if share == 1 else f"{row.id}-at-{100 * share:g}"
            keyed = re.compile(rf"({re.escape(name)}-[0-9a-f]{{16}})(\..+)?\.json")  # behind the key stand dtype and engine
            (stem,) = {found[1] for path in (folder / "search" / "scores").glob(f"{name}-*.json") if (found := keyed.fullmatch(path.name))}
            score = read_score(folder / "search" / "scores" / stem)
            assert score is not None
            answers = closed(score.rows, "test")
            documents = documents or list(dict.fromkeys(a["doc_id"] for a in answers))
            looks.append([sum(a["em"] for a in answers if a["doc_id"] == d) for d in documents])
            counts = [sum(a["doc_id"] == d for a in answers) for d in documents]
        correct.append(looks)
        told = read_score(_test_stem(folder, arm, exam))
        assert told is not None
        answers = closed(told.rows, "test")
        tests.append(sum(a["em"] for a in answers) / len(answers))
    tokens = np.array([[_last_stage_tokens(folder, row.stages[-1], share) for share in shares] for row in rows], dtype=np.float64)
    return Curves(
        [row.values for row in rows],
        100 * np.array(shares),
        np.array(correct),
        np.array(counts),
        np.array(tests),
        tokens,
        [r.signals for r in rows],
    )


def _last_stage_tokens(folder: Path, key: str, share: float) -> int:
    """Of the stage in which trials differ: what they share is trained once, with or without early stopping."""
    lines = [json.loads(line) for line in (folder / "stages" / key / "metrics.jsonl").read_text().splitlines()]
    steps = json.loads((folder / "stages" / key / "manifest.json").read_text())["job"]["num_steps"]
    return sum(line["tokens"] for line in lines if line["step"] < np.ceil(share * steps - 1e-9))


def replay(curves: Curves, first_rung: float, reduction: float, rng: np.random.Generator) -> dict[str, float]:
    """One search over the recorded curves with Ray Tune's own ASHA: {"regret", "test_regret", "tokens"}."""
    drawn = rng.integers(0, len(curves.asked), len(curves.asked))
    scores = curves.correct[:, :, drawn].sum(axis=2) / curves.asked[drawn].sum()  # (C, P)
    asha = ASHAScheduler(time_attr="progress", metric="em", mode="max", max_t=100, grace_period=first_rung, reduction_factor=reduction)
    spent, ended = 0.0, []
    for cell in rng.permutation(len(curves.values)):
        trial: Any = SimpleNamespace(trial_id=str(cell))
        asha.on_trial_add(None, trial)
        for n, percent in enumerate(curves.points):
            if percent < first_rung:
                continue
            action = asha.on_trial_result(None, trial, {"progress": percent, "em": scores[cell, n]})
            if percent == 100:
                ended.append(cell)
            if action == TrialScheduler.STOP:
                break
        spent += curves.tokens[cell, n]
    return _judged(curves, scores, ended, spent)


def replay_halving(curves: Curves, shares: list[float], reduction: float, rng: np.random.Generator) -> dict[str, float]:
    """The same with successive halving: tune.deciding.stopping.cut decides, as in a search."""
    drawn = rng.integers(0, len(curves.asked), len(curves.asked))
    scores = curves.correct[:, :, drawn].sum(axis=2) / curves.asked[drawn].sum()  # (C, P)
    points = [float(percent) for percent in curves.points]
    space = {"x": {"grid": [0]}}
    search = SearchConfig.model_validate(
        {"space": space, "algorithm": "grid", "stopping": {"scheduler": "halving", "reduction": reduction}}
    )
    rows = [Row(str(cell), {}, started=float(place)) for cell, place in enumerate(rng.permutation(len(curves.values)))]
    spent = np.zeros(len(rows))
    for percent in [*shares, 100.0]:
        n = points.index(percent)
        for cell, row in enumerate(rows):
            if row.state != "stopped":
                row.rungs.append(Rung(percent / 100, {"mean": scores[cell, n]}, None, 0))
                spent[cell] = curves.tokens[cell, n]
        for row, reason in cut(search, rows, percent / 100) if percent < 100 else ():
            row.state, row.reason = "stopped", reason
    ended = [cell for cell, row in enumerate(rows) if row.state != "stopped"]
    return _judged(curves, scores, ended, float(spent.sum()))


def _judged(curves: Curves, scores: np.ndarray, ended: list[int], spent: float) -> dict[str, float]:
    pick, best = max(ended, key=lambda cell: scores[cell, -1]), int(np.argmax(scores[:, -1]))
    return {
        "regret": 100 * (scores[best, -1] - scores[pick, -1]),
        "test_regret": 100 * (curves.test_correct[best] - curves.test_correct[pick]),
        "tokens": spent / curves.tokens[:, -1].sum(),
    }


def figures_of(replays: list[dict[str, float]]) -> dict[str, float]:
    regrets, tests, tokens = (np.array([replay[key] for replay in replays]) for key in ("regret", "test_regret", "tokens"))
    return {
        "regret_at_most_2": round(float((regrets <= GOAL_REGRET + 1e-9).mean()), 3),
        "regret_mean": round(float(regrets.mean()), 2),
        "regret_90th": round(float(np.quantile(regrets, 0.9)), 2),
        "test_regret_mean": round(float(tests.mean()), 2),
        "test_regret_at_most_2": round(float((tests <= GOAL_REGRET + 1e-9).mean()), 3),
        "tokens_mean": round(float(tokens.mean()), 3),
        "tokens_90th": round(float(np.quantile(tokens, 0.9)), 3),
    }


def main() -> None:
    parser = Command("python -m benchmarks.search", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="runs")
    arguments = parser.parse_args()
    folders = {seed: train_grid(seed, arguments.runs) for seed in range(arguments.seeds)}
    examine_all(folders)
    grids = {seed: read_curves(folder, seed) for seed, folder in folders.items()}
    rng = np.random.default_rng(0)
    schedulers = {}
    ways = {name: partial(replay_halving, shares=shares, reduction=reduction) for name, (shares, reduction) in HALVING.items()}
    ways |= {name: partial(replay, first_rung=first, reduction=reduction) for name, (first, reduction) in RUNGS.items()}
    for name, way in ways.items():
        by_seed = {seed: [way(curves, rng=rng) for _ in range(REPLAYS)] for seed, curves in grids.items()}
        schedulers[name] = {
            **figures_of([one for of in by_seed.values() for one in of]),
            "by_seed": {str(seed): figures_of(of) for seed, of in by_seed.items()},
        }
    chosen = schedulers[CHOSEN]
    figures = {
        "seeds": list(grids),
        "replays": REPLAYS * len(grids),
        "chosen": CHOSEN,
        "schedulers": schedulers,
        "signals": {name: {str(seed): _signal(name, curves) for seed, curves in grids.items()} for name in BAD_SIDE},
        "grid": {str(seed): _grid(curves) for seed, curves in grids.items()},
    }
    goal = {"regret": f"<= {GOAL_REGRET:g} in >= {100 * GOAL_SHARE:g} % of replays", "tokens": f"<= {GOAL_TOKENS:g}", "seeds": ">= 3"}
    holds = chosen["regret_at_most_2"] >= GOAL_SHARE and chosen["tokens_mean"] <= GOAL_TOKENS and len(grids) >= 3
    write_result_file("search", figures, goal, bool(holds))


def _signal(name: str, curves: Curves) -> dict[str, Any] | None:
    scores = curves.correct[:, -1].sum(axis=1) / curves.asked.sum()
    return measured(name, [signals[name] for signals in curves.signals], list(scores), 1, REPLAYS, 0)


def _grid(curves: Curves) -> list[dict[str, Any]]:
    scores = 100 * curves.correct.sum(axis=2) / curves.asked.sum()
    return [
        {**{path.rpartition(".")[2]: value for path, value in values.items()}, "em_at": {f"{p:g} %": round(float(s), 1) for p, s in zip(curves.points, line, strict=True)},
         "test_em": round(100 * float(test), 1)}
        for values, line, test in zip(curves.values, scores, curves.test_correct, strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    main()

"""python -m evaluation seeds RUN RUN …: several runs of one experiment, each with its own seed, taken together."""

import argparse
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from console import Command, UserError, out, tell, whole, write_result
from evaluation.score_files import Score, asked_in, newest_score, trained_arms
from evaluation.scoring.scores import METRICS
from evaluation.scoring.statistics import Interval, document_clusters, seeded_bootstrap

DESCRIPTION = """\
What several seeds of one experiment say together: each arm's mean, and paired differences, with 95 % intervals that
resample seeds and documents: those of each seed, where a seed makes its own, else the same ones for all seeds.
A RUN is a run folder that `python -m evaluation` has scored; runs differ in `seed=` alone (and in their name).
"""
EXAMPLES = """\
examples:
  python -m evaluation seeds runs/pit-effect-0 runs/pit-effect-1 runs/pit-effect-2
  python -m evaluation seeds runs/pit-effect-* --pair pit:standard --pair pit_plus_plus:pit
  python -m evaluation seeds runs/pit-effect-* --set train --metric recall --json
"""

Rows = list[dict[str, Any]]


def across_seeds(
    run_folders: Sequence[Path],
    pairs: Sequence[tuple[str, str]] | None = None,
    set_name: str = "test",
    metric: str = "em",
    resamples: int = 4000,
    mode: str = "closed",
    without: Mapping[Path, Container[str]] | None = None,
) -> dict[str, Any]:
    """Means of the arms that every run has scored, and the differences `a − b` of `pairs` (None: every arm against every other).

    {"seeds", "folders", "set", "mode", "metric", "resamples", "arms": {name: estimate}, "missing": {name: [folders]},
    "differences": {a: {b: estimate}}}, where an estimate is {"mean", "low", "high", "by_seed", "sd", "questions", "documents"}:
    shares in [0, 1]; `by_seed` in the order of "seeds"; `sd` between seeds (null with one). Intervals: statistics.seeded_bootstrap.
    `without`: of each folder questions (by id) that are left out.
    Raises UserError for a run without scores, two runs of one seed, a pair that some run lacks, or arms that sat different exams.
    """
    found = {folder: _scored(folder, set_name, mode) for folder in map(Path, run_folders)}
    if not found:
        raise UserError("no run folder given")
    _refuse_other_settings({folder: settings for folder, (_, settings) in found.items()})
    left_out = without or {}
    runs = {
        folder: {name: [row for row in rows if row["question_id"] not in left_out.get(folder, ())] for name, rows in scored.items()}
        for folder, (scored, _) in found.items()
    }
    seeds = [_seed(folder, scored) for folder, scored in runs.items()]
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise UserError(f"two of these runs have seed {twice}: they are not independent; give each seed once")
    names = list(dict.fromkeys(name for scored in runs.values() for name in scored))
    missing = {name: [str(folder) for folder, scored in runs.items() if name not in scored] for name in names}
    missing = {name: lacking for name, lacking in missing.items() if lacking}
    everywhere = [name for name in names if name not in missing]
    if pairs is None:
        pairs = [(a, b) for a in everywhere for b in everywhere if a != b]
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        if name not in everywhere:
            lacking = missing.get(name, list(map(str, runs)))
            raise UserError(
                f"arm {name} has no score of set {set_name} in {', '.join(lacking)}; scored everywhere: {', '.join(everywhere)}"
            )

    def estimate(name: str, minus: str | None = None) -> dict[str, Any]:
        rows = [scored[name] for scored in runs.values()]
        values = [np.array([r[metric] for r in of], dtype=np.float64) for of in rows]
        if minus is not None:
            values = [ours - [r[metric] for r in scored[minus]] for ours, scored in zip(values, runs.values(), strict=True)]
        return _estimate(over_seeds(rows, values, resamples), [float(of.mean()) for of in values])

    differences: dict[str, dict[str, Any]] = {}
    for a, b in pairs:
        differences.setdefault(a, {})[b] = estimate(a, b)
    return {
        "seeds": seeds,
        "folders": [str(folder) for folder in runs],
        "set": set_name,
        "mode": mode,
        "metric": metric,
        "resamples": resamples,
        "arms": {name: estimate(name) for name in everywhere},
        "missing": missing,
        "differences": differences,
    }


def over_seeds(rows: Sequence[Rows], values: Sequence[Sequence[float] | np.ndarray], resamples: int) -> Interval:
    """statistics.seeded_bootstrap of these rows' `values`, by seed. Seeds were asked about the same documents where all of their questions and answers are the
    same; made people have the same ids and other answers."""
    asked = [[(row["question_id"], row["doc_id"], row["gold"]) for row in of] for of in rows]
    clusters = [document_clusters([row["doc_id"] for row in of]) for of in rows]
    same = len(rows) > 1 and all(of == asked[0] for of in asked)
    return seeded_bootstrap(values, clusters, resamples, seed=0, same_documents=same)


def _scored(folder: Path, set_name: str, mode: str) -> tuple[dict[str, Rows], dict[str, Any]]:
    """(each scored arm's rows of one set, the exam's settings); all arms must have sat the same exam."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    found = {arm.name: newest_score(folder, arm) for arm in trained_arms(folder)[0]}
    scored = {name: asked_in(score.rows, set_name, mode) for name, score in found.items() if score}
    scored = {name: rows for name, rows in scored.items() if rows}
    if not scored:
        raise UserError(f"{folder}: no arm has a score of set {set_name}; run python -m evaluation X.yaml first")
    asked = {name: [r["question_id"] for r in rows] for name, rows in scored.items()}
    settings = {name: _settings(found[name]) for name in scored}
    first = next(iter(asked))
    for name, questions in asked.items():
        if questions != asked[first] or _differing(settings[first], settings[name]):
            raise UserError(
                f"{folder}: the newest scores of {name} and {first} are of different exams; take those of one of them out of {folder / 'scores'}, "
                "then run python -m evaluation X.yaml"
            )
    return scored, settings[first]


def _settings(score: Score | None) -> dict[str, Any]:
    """Of a score what must be equal between those taken together; scores of before 2026-11-29 do not say."""
    about = score.about if score else {}
    return {**about.get("exam", {}), "dtype": about.get("dtype")}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Of what both say."""
    return {name for name in one.keys() & other.keys() if one[name] != other[name]}


def _refuse_other_settings(of: dict[Path, dict[str, Any]]) -> None:
    first, *others = of
    for folder in others:
        for name in _differing(of[first], of[folder]) - {"asked"}:  # seeds may choose other questions
            raise UserError(
                f"{folder}: its newest scores and those of {first} differ in exam.{name} ({of[folder][name]} and {of[first][name]}), so they cannot be "
                "taken together; run python -m evaluation X.yaml alike, or take the newer scores out"
            )


def _seed(folder: Path, scored: dict[str, Rows]) -> int:
    seeds = {row["seed"] for rows in scored.values() for row in rows}
    if len(seeds) > 1:
        raise UserError(f"{folder}: its scores come from seeds {sorted(seeds)}; give every seed its own run folder")
    return int(seeds.pop())


def _estimate(interval: Interval, by_seed: list[float]) -> dict[str, Any]:
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "by_seed": by_seed,
        "sd": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        "questions": interval.n,
        "documents": interval.clusters,
    }


def main(argv: list[str]) -> int:
    parser = Command("python -m evaluation seeds", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run folder, e.g. runs/pit-effect-0")
    parser.add_argument("--pair", metavar="A:B", action="append", type=_pair, help="show A − B only; give it as often as you like")
    parser.add_argument("--set", default="test", help="test (default), train, replay, …")
    parser.add_argument("--mode", default="closed", help="how they were asked: closed (default), retrieval, …")
    parser.add_argument("--metric", choices=METRICS, default="em")
    parser.add_argument("--resamples", type=whole(1), default=4000)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(argv)
    found = across_seeds(args.runs, args.pair, args.set, args.metric, args.resamples, args.mode)
    if args.json:
        write_result(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def _pair(text: str) -> tuple[str, str]:
    a, colon, b = text.partition(":")
    if not (a and colon and b):
        raise argparse.ArgumentTypeError(f"{text}: expected A:B, e.g. pit:standard")
    return a, b


def _print(found: dict[str, Any]) -> None:
    what = f"{found['set']} {found['metric'].upper()}, asked {found['mode']},"
    out.print(f"{what} of seed {', '.join(map(str, found['seeds']))}, %; 95 % intervals", markup=False)
    out.print(_table("arm", list(found["arms"].items()), found["seeds"]))
    gaps = [(f"{a} − {b}", gap) for a, of in found["differences"].items() for b, gap in of.items()]
    if gaps:
        out.print("Paired differences, points", markup=False)
        out.print(_table("arms", gaps, found["seeds"]))
    for name, folders in found["missing"].items():
        tell(f"{name} is left out: no score in {', '.join(folders)}")
    if len(found["seeds"]) < 10:
        out.print("With so few seeds the intervals are somewhat too narrow; look at each seed too.", markup=False)


def _table(head: str, rows: list[tuple[str, dict[str, Any]]], seeds: list[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate([head, "mean", "interval", *(f"seed {seed}" for seed in seeds)]):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for name, e in rows:
        ends = f"{_points(e['low'])} to {_points(e['high'])}"
        table.add_row(name, _points(e["mean"]), ends, *map(_points, e["by_seed"]))
    return table


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}".replace("-", "−")

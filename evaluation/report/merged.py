"""Models that were put together from trained arms (trainer/merging/merge.py), beside what they were made of.

merged      {"arms": {arm: {"in_words", "of", "instruct", "base", "method", "scale", "notes", "relative_norm", "minus": {other: paired
            difference of test EM}}}, "left_out": {arm: reason}}; absent where an experiment has none
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.score_files import Score, TrainedArm, closed
from evaluation.scoring.aggregate import as_dict, clusters_of
from evaluation.scoring.statistics import paired_difference


def merged(folder: Path, arms: Sequence[TrainedArm], scores: Mapping[str, Score], resamples: int, seed: int) -> dict[str, Any]:
    """{"merged": …} for report.json, or {}. `minus` compares with `of`, what was added to, and with `instruct`, where they are scored."""
    left_out = json.loads((folder / "arms.json").read_text(encoding="utf-8")).get("left_out") or {}
    made = {arm.name: arm.entry["merged"] for arm in arms if "merged" in arm.entry}
    if not made and not left_out:
        return {}
    rows = {name: closed(score.rows, "test") for name, score in scores.items()}
    found = {}
    for name, told in made.items():
        others = [other for other in (told["of"], told["instruct"]) if name in rows and other in rows]
        found[name] = {**told, "minus": {other: _minus(rows[name], rows[other], resamples, seed) for other in others}}
    return {"merged": {"arms": found, "left_out": left_out}}


def _minus(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], resamples: int, seed: int) -> dict[str, float]:
    em_ours, em_theirs = [row["em"] for row in ours], [row["em"] for row in theirs]
    return as_dict(paired_difference(em_ours, em_theirs, clusters_of(ours), resamples, seed))

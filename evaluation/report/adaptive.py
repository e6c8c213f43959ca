"""Retrieval only where it is needed: what it would score, from answers that are there already."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.score_files import Score, closed
from evaluation.scoring.aggregate import Row, clusters_of

_MANY_THRESHOLDS = 50


def adaptive(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Retrieve only where the model is unsure of its own closed answer: from the answers at hand, nothing is generated.

    {arm: {"curve": [{"retrieved": share, "em"}] from never to always, "em", "retrieved": with the threshold chosen on the other half of the
    documents, so that it is not flattered, "closed", "always"}}.
    """
    found: dict[str, Any] = {}
    for name, score in scores.items():
        alone = {r["question_id"]: r for r in closed(score.rows, "test") if r.get("logprob") is not None}
        helped = {r["question_id"]: r for r in score.rows if r["set"] == "test" and r.get("mode") == "retrieval"}
        both = [question for question in alone if question in helped]
        if len(both) < 2:
            continue
        sure = np.array([alone[q]["logprob"] for q in both])
        a, b = (np.array([rows[q]["em"] for q in both], dtype=np.float64) for rows in (alone, helped))
        half = np.array(_halves([alone[q] for q in both]))
        chosen = np.zeros(len(both), dtype=bool)
        for side in (0, 1):
            chosen[half == side] = sure[half == side] < best_threshold(sure[half != side], a[half != side], b[half != side])
        levels = np.quantile(sure, np.linspace(0, 1, min(_MANY_THRESHOLDS, len(both)) + 1)[1:-1])
        curve = [sure < level for level in [-np.inf, *dict.fromkeys(levels.tolist()), np.inf]]
        found[name] = {
            "curve": [{"retrieved": float(c.mean()), "em": float(np.where(c, b, a).mean())} for c in curve],
            "em": float(np.where(chosen, b, a).mean()),
            "retrieved": float(chosen.mean()),
            "closed": float(a.mean()),
            "always": float(b.mean()),
        }
    return found


def best_threshold(sure: np.ndarray, closed_em: np.ndarray, retrieval_em: np.ndarray) -> float:
    """Below which log-probability to retrieve so that EM is highest; of equal ones the one that retrieves least."""
    if not len(sure):
        return float("-inf")
    order = np.argsort(sure, kind="stable")
    gain = np.concatenate([[0.0], np.cumsum((retrieval_em - closed_em)[order])])
    levels = np.concatenate([sure[order], [np.inf]])
    ends = np.concatenate([[True], levels[1:] > levels[:-1]])  # equal ones fall on one side together
    gain[~ends] = -np.inf
    best = int(np.argmax(gain))
    return float(levels[best]) if best else float("-inf")


def _halves(rows: Sequence[Row]) -> list[int]:
    """0 or 1 for each row, alternating by document."""
    number: dict[Any, int] = {}
    return [number.setdefault(cluster, len(number)) % 2 for cluster in clusters_of(rows)]

"""Rows of a score file → means with their intervals, as plain values for report.json."""

from collections.abc import Sequence
from typing import Any

from evaluation.scoring.scores import METRICS
from evaluation.scoring.statistics import Interval, cluster_bootstrap, document_clusters, paired_difference

Row = dict[str, Any]


def set_scores(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """{"n", "documents", each of METRICS: interval, "ended"} of at least one row."""
    clusters = clusters_of(rows)
    return {
        "n": len(rows),
        "documents": len(set(clusters)),
        **{metric: as_dict(cluster_bootstrap([r[metric] for r in rows], clusters, resamples, seed)) for metric in METRICS},
        "ended": sum(r["finish_reason"] == "stop" for r in rows) / len(rows),
    }


def difference(ours: Sequence[Row], theirs: Sequence[Row], resamples: int, seed: int) -> dict[str, float] | None:
    """Of exact match, paired over the questions that both were asked; None where there is none."""
    by_id = {r["question_id"]: r for r in theirs}
    ours = [r for r in ours if r["question_id"] in by_id]
    if not ours:
        return None
    values = [r["em"] for r in ours], [by_id[r["question_id"]]["em"] for r in ours]
    return as_dict(paired_difference(*values, clusters_of(ours), resamples, seed))


def mean_of(rows: Sequence[Row], key: str) -> float | None:
    """Over the rows that have a value; None where none has."""
    values = [r[key] for r in rows if r.get(key) is not None]
    return sum(values) / len(values) if values else None


def clusters_of(rows: Sequence[Row]) -> list[Any]:
    return document_clusters([r["doc_id"] for r in rows])


def as_dict(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}

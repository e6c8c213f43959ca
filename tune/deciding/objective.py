"""What a trial is judged by: a metric of its answers to the questions that were set aside, and what it must not forget."""

from collections.abc import Sequence
from typing import Any

from console import RunError
from data.records import Corpus
from evaluation.config import ExamConfig
from evaluation.score_files import closed
from evaluation.scoring.aggregate import clusters_of
from evaluation.scoring.statistics import Interval, cluster_bootstrap, document_clusters
from tune.config import Metric, SearchConfig

REFUSED = 1000.0
"""Taken from the objective of a refused trial: samplers and schedulers then prefer every other, and still see which is less bad."""


def exam_for_search(config: ExamConfig, search: SearchConfig) -> ExamConfig:
    """Only what the metric and the guard need: a look must cost little, and there are many."""
    guarded = search.guard.set if search.guard else None
    return config.model_copy(
        update={
            "modes": ["closed"],
            "looks": [],
            "train_questions": 0,
            "replay_questions": config.replay_questions if guarded == "replay" else 0,
            "retention": config.retention if guarded == "retention" else None,
            "documents": config.documents if search.metric == "document_loss" else 0,
        }
    )


def missing_for(metric: Metric, search: SearchConfig, validation: Corpus, config: ExamConfig) -> str | None:
    """Why no exam produces what the search wants to see; None where one does."""
    test = validation.part("test")
    if metric == "choices" and not test.choices:
        return "metric: choices: the data hold no multiple-choice questions in the test split"
    if metric in ("em", "recall", "f1", "rouge_l") and not (test.questions or test.choices):
        return f"metric: {metric}: the data hold no test questions"
    if metric == "document_loss" and not (test.documents and config.documents):
        return "metric: document_loss: the data hold no test documents, or exam.documents is 0"
    if search.guard and search.guard.set == "replay" and not (validation.part("replay").questions and config.replay_questions):
        return "guard: replay: the data hold no replay questions, or exam.replay_questions is 0"
    if search.guard and search.guard.set == "retention" and not (config.retention and config.retention_questions):
        return "guard: retention: needs exam.retention, a file of questions"
    return None


def score_of(
    metric: Metric,
    rows: Sequence[dict[str, Any]],
    losses: Sequence[dict[str, Any]],
    choices: Sequence[tuple[str | None, float]],
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """{"mean", "low", "high", "n"}: the metric with its interval over documents.

    `rows`: answers to the validation questions; `losses`: [{"id", "tokens", "nll"}]; `choices`: (document, 1 where right).
    RunError where a document's loss is no number.
    """
    if metric == "document_loss":
        if any(loss["nll"] is None for loss in losses):
            raise RunError("the loss of a document is no number: the weights have diverged")
        tokens = [loss["tokens"] for loss in losses]
        means = [loss["nll"] / count for loss, count in zip(losses, tokens, strict=True)]
        return _told(cluster_bootstrap(means, [loss["id"] for loss in losses], resamples, seed, tokens))
    if metric == "choices":
        return _told(cluster_bootstrap([right for _, right in choices], document_clusters([doc for doc, _ in choices]), resamples, seed))
    return _told(cluster_bootstrap([row[metric] for row in rows], clusters_of(list(rows)), resamples, seed))


def _told(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def guarded_mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """Exact match on the guarded set."""
    ems = [row["em"] for row in closed(rows, name)]
    return sum(ems) / len(ems) if ems else None


def breaks_guard(search: SearchConfig, value: float | None, base: float | None) -> str | None:
    """Why a trial is refused; None where it is not."""
    if search.guard is None or value is None or base is None:
        return None
    lost = 100 * (base - value)
    if lost <= search.guard.most_points + 1e-9:
        return None
    return (
        f"{search.guard.set} EM fell by {lost:.1f} points ({100 * base:.1f} → {100 * value:.1f}); {search.guard.most_points:g} are allowed"
    )


def objective(search: SearchConfig, score: float, refused: bool) -> float:
    """What samplers and schedulers see, in the metric's own direction."""
    if not refused:
        return score
    return score - REFUSED if search.direction == "max" else score + REFUSED

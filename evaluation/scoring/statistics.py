"""Intervals over questions that come in documents, differences between arms, and answers that need no knowledge.

Questions of one document are correlated: a document that was learnt answers all of its questions. An interval that
treats questions as independent is too narrow, so documents are resampled, not questions (cluster bootstrap, e.g. Davison
& Hinkley 1997, §3.8; for evaluations Miller 2024, arXiv 2411.00640).
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.scoring.scores import Numbers, exact_match, normalise

_BLOCK = 1 << 22
"""Random indices drawn at once: 32 MiB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval. With fewer than some 20 clusters, or values that are all alike, it is too narrow."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int


def cluster_bootstrap(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    resamples: int,
    seed: int,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Interval:
    """The (weighted) mean of `values` (n,) and its 95 % percentile interval over resampled clusters.

    Clusters are drawn with replacement, as many as there are; a resample's mean is its sum over its weight (so large
    clusters count as much as they hold). `clusters` (n,) are labels, see `document_clusters`; `weights` (n,) default to 1,
    e.g. tokens. The same labels and seed draw the same clusters, whatever the values. Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("no values: an interval needs at least one")
    sums, sizes = _per_cluster(values, clusters, weights)
    means = _resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high), len(values), len(sums))


def paired_difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], resamples: int, seed: int
) -> Interval:
    """Mean of `ours` − `theirs` (both (n,), the same questions in the same order) over the same resampled documents.

    Far narrower than the two intervals suggest where the arms find the same questions hard.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"not the same questions: {len(ours)} and {len(theirs)}")
    return cluster_bootstrap(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64), clusters, resamples, seed)


def seeded_bootstrap(
    values: Sequence[Sequence[float] | np.ndarray],
    clusters: Sequence[Sequence[Hashable]],
    resamples: int,
    seed: int,
    same_documents: bool = False,
) -> Interval:
    """The mean over training seeds of each seed's mean, and its 95 % percentile interval: seeds resampled, then documents.

    `values[s]` (n_s,) and `clusters[s]` are those of training seed s. A resample draws as many seeds as there are, with
    replacement, and in every draw the documents of that seed anew, so the interval covers the luck of the seed and the
    choice of documents; every seed counts alike. `same_documents`: all seeds were asked about the same ones (equal clusters, in equal order), so that a
    resample draws them once for all of its seeds: drawn anew, what is hard about a document would seem to be luck that several seeds even out.

    For a paired difference hand in differences, question by question. With one seed this is `cluster_bootstrap`; with fewer than some ten, percentile intervals are too narrow (by about √(S/(S − 1)) and more).
    Raises ValueError without values.
    """
    if not values or any(len(of) == 0 for of in values):
        raise ValueError("no values: an interval needs at least one question of every seed")
    if len(values) != len(clusters):
        raise ValueError(f"values of {len(values)} seeds but clusters of {len(clusters)}")
    if same_documents and any(list(labels) != list(clusters[0]) for labels in clusters):
        raise ValueError("not the same documents in the same order")
    sums = [_per_cluster(of, labels) for of, labels in zip(values, clusters, strict=True)]
    rng = np.random.default_rng(seed)
    count = len(sums)
    drawn = rng.integers(0, count, size=(resamples, count))
    if same_documents:
        means = _crossed_means(np.stack([total for total, _ in sums]), sums[0][1], drawn, rng)
    else:
        of_seeds = np.empty((resamples, count))
        for s, (total, size) in enumerate(sums):
            places = drawn == s
            of_seeds[places] = _resampled_means(total, size, int(places.sum()), rng)
        means = of_seeds.mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(np.mean([total.sum() / size.sum() for total, size in sums]))
    documents = len(sums[0][0]) if same_documents else sum(len(total) for total, _ in sums)
    return Interval(mean, float(low), float(high), sum(map(len, values)), documents)


def share_of_the_way(
    gained: Sequence[float] | np.ndarray, possible: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], resamples: int, seed: int
) -> Interval | None:
    """Σ gained / Σ possible (both (n,), of the same questions) and its 95 % percentile interval over resampled clusters.

    None where nothing is possible, and where that is so in more than 1 % of the resamples: such a share means nothing.
    """
    (gains, _), (ways, _) = _per_cluster(gained, clusters), _per_cluster(possible, clusters)
    if ways.sum() <= 0:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(ways), size=(resamples, len(ways)))
    sums, goals = gains[drawn].sum(axis=1), ways[drawn].sum(axis=1)
    usable = goals > 0
    if usable.mean() < 0.99:
        return None
    low, high = np.quantile(sums[usable] / goals[usable], [0.025, 0.975])
    return Interval(float(gains.sum() / ways.sum()), float(low), float(high), len(gained), len(ways))


def document_clusters(doc_ids: Sequence[str | None]) -> list[Hashable]:
    """A label for each question: its document, or itself where it has none."""
    return [("question", i) if doc_id is None else ("document", doc_id) for i, doc_id in enumerate(doc_ids)]


@dataclass(frozen=True, slots=True)
class Constant:
    """What always giving one answer would score."""

    answer: str
    em: float


def commonest_answer(answers: Sequence[Sequence[str]], exam: Sequence[Sequence[str]], numbers: Numbers = "squad") -> Constant | None:
    """EM on the exam of always giving the commonest of `answers`; both hold each question's gold answers.

    Wordings count as one where they normalise alike; of equally common ones the first met wins. None without any.
    With `answers` from the train questions: what a model could have picked up; from the exam itself: the best that
    any constant can do.
    """

    def alike(gold: str) -> str:
        return normalise(gold, numbers) or gold.strip().casefold()  # "A" is an answer, too

    counts = Counter(key for golds in answers for key in {alike(gold): None for gold in golds} if key)
    if not counts or not exam:
        return None
    commonest = counts.most_common(1)[0][0]
    wording = next(gold for golds in answers for gold in golds if alike(gold) == commonest)
    return Constant(wording, sum(exact_match(wording, golds, numbers) for golds in exam) / len(exam))


def _per_cluster(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], weights: Sequence[float] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum and weight (C,) of each cluster, in the order of first occurrence."""
    x = np.asarray(values, dtype=np.float64)
    if len(clusters) != len(x):
        raise ValueError(f"{len(x)} values but {len(clusters)} cluster labels")
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    labels = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    index = np.fromiter((labels[c] for c in clusters), dtype=np.int64, count=len(x))
    return np.bincount(index, weights=x * w), np.bincount(index, weights=w)


def _crossed_means(sums: np.ndarray, sizes: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means (resamples,) over the seeds `drawn` (resamples, S) and one draw of documents; sums (S, C), sizes (C,)."""
    seeds, count = sums.shape
    rows = max(1, _BLOCK // count)
    means = np.empty(len(drawn))
    for start in range(0, len(drawn), rows):
        block = drawn[start : start + rows]
        times = (block[:, :, None] == np.arange(seeds)).sum(axis=1)  # (rows, S)
        documents = rng.integers(0, count, size=(len(block), count))
        over_seeds = np.take_along_axis(times @ sums / seeds, documents, axis=1)
        means[start : start + len(block)] = over_seeds.sum(axis=1) / sizes[documents].sum(axis=1)
    return means


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means (resamples,) of clusters with these sums (C,) and sizes (C,), drawn with replacement."""
    count = len(sums)
    rows = max(1, _BLOCK // count)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, count, size=(min(rows, resamples - start), count))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means

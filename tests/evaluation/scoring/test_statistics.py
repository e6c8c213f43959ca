"""Intervals: known cases, coverage on simulated documents, and the naive bootstrap that must fail."""

import time

import numpy as np
import pytest

from evaluation.scoring.statistics import cluster_bootstrap, commonest_answer, document_clusters, paired_difference, seeded_bootstrap


def test_a_constant_has_no_width() -> None:
    interval = cluster_bootstrap([1.0, 1.0, 1.0], ["a", "a", "b"], 200, 0)
    assert (interval.mean, interval.low, interval.high, interval.n, interval.clusters) == (1, 1, 1, 3, 2)


def test_two_clusters_by_hand() -> None:
    """Draws are aa (¼), ab (½), bb (¼): means 1, 3/4, 0, so the interval is [0, 1] and the mean counts questions, not documents."""
    interval = cluster_bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], 2000, 0)
    assert (interval.mean, interval.low, interval.high) == (0.75, 0, 1)


def test_independent_questions_match_the_normal_interval() -> None:
    values = np.random.default_rng(0).random(2000) < 0.3
    interval = cluster_bootstrap(values, document_clusters([None] * 2000), 4000, 1)
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 2000)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.003)  # Monte Carlo error of a 2.5 % quantile: about 0.0005
    assert interval.high == pytest.approx(values.mean() + half, abs=0.003)
    assert interval.clusters == 2000


def simulated(rng: np.random.Generator, documents: int = 60, questions: int = 8) -> tuple[np.ndarray, list[int]]:
    """Answers whose documents differ: each document has its own rate of right answers, 0.5 on average."""
    rates = rng.beta(0.5, 0.5, size=documents)
    return (rng.random((documents, questions)) < rates[:, None]).astype(float).ravel(), np.repeat(np.arange(documents), questions).tolist()


def coverage(clustered: bool) -> float:
    hits = 0
    for trial in range(300):
        values, clusters = simulated(np.random.default_rng(trial))
        interval = cluster_bootstrap(values, clusters if clustered else list(range(len(values))), 400, trial)
        hits += interval.low <= 0.5 <= interval.high
    return hits / 300


def test_coverage_on_clustered_data() -> None:
    """300 trials: the standard error of 0.95 is 0.013; a percentile interval of 60 clusters covers a little less."""
    assert 0.91 <= coverage(clustered=True) <= 0.985


def test_naive_bootstrap_is_too_narrow() -> None:
    """The twin that must fail: questions resampled one by one."""
    assert coverage(clustered=False) < 0.75


def test_pairing_uses_the_same_documents_for_both() -> None:
    rng = np.random.default_rng(3)
    theirs, clusters = simulated(rng)
    ours = np.where(rng.random(len(theirs)) < 0.1, 1.0, theirs)  # right wherever they are, and a little more often
    difference = paired_difference(ours, theirs, clusters, 2000, 0)
    assert difference.mean == pytest.approx(ours.mean() - theirs.mean())
    assert difference.low > 0
    separate = cluster_bootstrap(ours, clusters, 2000, 0), cluster_bootstrap(theirs, clusters, 2000, 0)
    assert separate[0].low < separate[1].high  # the two intervals alone would have called it a tie
    assert difference.high - difference.low < (separate[0].high - separate[0].low) / 2


def test_resampling_depends_on_seed_alone() -> None:
    values, clusters = simulated(np.random.default_rng(0))
    assert cluster_bootstrap(values, clusters, 500, 7) == cluster_bootstrap(values, clusters, 500, 7)
    assert cluster_bootstrap(values, clusters, 500, 7) != cluster_bootstrap(values, clusters, 500, 8)
    renamed = cluster_bootstrap(values, [f"d{c}" for c in clusters], 500, 7)
    assert renamed == cluster_bootstrap(values, clusters, 500, 7)


def test_weights_make_a_mean_per_token() -> None:
    """Documents of 10 and 90 tokens with losses 1 and 2: 190/100, not 1.5."""
    interval = cluster_bootstrap([1.0, 2.0], ["a", "b"], 500, 0, weights=[10, 90])
    assert (interval.mean, interval.low, interval.high) == (1.9, 1, 2)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no values"):
        cluster_bootstrap([], [], 100, 0)
    with pytest.raises(ValueError, match="labels"):
        cluster_bootstrap([1.0], [], 100, 0)
    with pytest.raises(ValueError, match="not the same questions"):
        paired_difference([1.0], [1.0, 0.0], ["a"], 100, 0)


def test_questions_without_a_document_are_clusters_of_their_own() -> None:
    labels = document_clusters(["d", None, "d", None, "1"])
    assert len(set(labels)) == 4
    assert labels[0] == labels[2]


def test_two_thousand_questions_take_under_a_second() -> None:
    values, clusters = simulated(np.random.default_rng(0), documents=2000, questions=1)
    start = time.perf_counter()
    cluster_bootstrap(values, clusters, 2000, 0)
    assert time.perf_counter() - start < 1


def test_commonest_answer_by_hand() -> None:
    train = [["Oslo"], ["the Oslo"], ["Rome"], ["Bern", "bern"]]  # Oslo twice, Bern once: an answer's twin spellings count once
    exam = [["oslo"], ["Rome"], ["Rome", "Oslo"], ["Rome"]]
    learnt, best = commonest_answer(train, exam), commonest_answer(exam, exam)
    assert learnt is not None and (learnt.answer, learnt.em) == ("Oslo", 0.5)
    assert best is not None and (best.answer, best.em) == ("Rome", 0.75)
    assert commonest_answer([], exam) is None
    symbols = [["A"]] * 6 + [["B"]] * 4  # "A" normalises to nothing, as an article: still the answer that scores most
    best = commonest_answer(symbols, symbols)
    assert best is not None and (best.answer, best.em) == ("A", 0.6)


def test_seeds_by_hand() -> None:
    """Seed A is always right, seed B never: draws are AA (¼), AB (½), BB (¼), so means 1, ½, 0, whatever the documents."""
    values, clusters = [[1.0] * 40, [0.0] * 40], [list(range(40))] * 2
    interval = seeded_bootstrap(values, clusters, 4000, 0)
    assert (interval.mean, interval.low, interval.high, interval.n, interval.clusters) == (0.5, 0, 1, 80, 80)
    pooled = cluster_bootstrap([1.0] * 40 + [0.0] * 40, list(range(80)), 4000, 0)  # the twin: one bag of documents hides the seeds
    assert pooled.high - pooled.low < 0.3


def test_documents_are_resampled_within_each_seed() -> None:
    """Two equal seeds of two documents, one right: a seed's mean is 0, ½, ½, 1; of two independent ones 0 (1/16), ¼, … 1 (1/16)."""
    interval = seeded_bootstrap([[1, 0], [1, 0]], [["a", "b"], ["a", "b"]], 20_000, 0)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0, 1)  # 1/16 is more than 2.5 %
    four = seeded_bootstrap([[1, 0]] * 4, [["a", "b"]] * 4, 20_000, 0)
    # mean of 8 draws: P(≤ 1/8) = 9/256 = 3.5 %, P(0) = 0.4 %: the 2.5 % quantile is 1/8
    assert (four.low, four.high) == (0.125, 0.875)


def test_every_seed_counts_alike_and_one_seed_is_the_plain_bootstrap() -> None:
    assert seeded_bootstrap([[1.0], [0.0, 0.0, 0.0]], [["a"], ["a", "b", "c"]], 200, 0).mean == 0.5
    values, labels = simulated(np.random.default_rng(0))
    seeded, plain = seeded_bootstrap([values], [labels], 4000, 0), cluster_bootstrap(values, labels, 4000, 1)
    assert seeded.mean == plain.mean
    assert (seeded.low, seeded.high) == pytest.approx((plain.low, plain.high), abs=0.01)  # 60 documents: a quantile's error is ~0.003


def test_coverage_over_seeds() -> None:
    """Twelve seeds whose true means differ (sd 0.1): the interval of their grand mean; without the seed level it covers far too seldom."""

    def hits(seeded: bool) -> float:
        inside = 0
        for trial in range(300):
            rng = np.random.default_rng(trial)
            rates = 0.5 + 0.1 * rng.standard_normal(12)
            values = [(rng.random(60) < rate).astype(float) for rate in rates]
            if seeded:
                interval = seeded_bootstrap(values, [list(range(60))] * 12, 400, trial)
            else:
                interval = cluster_bootstrap(np.concatenate(values), list(range(720)), 400, trial)
            inside += interval.low <= 0.5 <= interval.high
        return inside / 300

    assert 0.91 <= hits(seeded=True) <= 0.985  # 12 seeds and 60 documents: √(11/12) too narrow, made up by counting documents twice
    assert hits(seeded=False) < 0.85


def test_seeds_that_share_their_documents() -> None:
    """Two seeds, two documents, one of them hard for both: a resample draws the documents once: means 0 (¼), ½, 1 (¼) – drawn for each seed 0 would be 1/16."""
    shared = seeded_bootstrap([[1, 0]] * 6, [["a", "b"]] * 6, 20_000, 0, same_documents=True)
    assert (shared.low, shared.high, shared.clusters) == (0, 1, 2)
    apart = seeded_bootstrap([[1, 0]] * 6, [["a", "b"]] * 6, 20_000, 0)  # the twin
    assert apart.low > 0.1 and apart.high < 0.9


@pytest.mark.parametrize(("same", "least", "most"), [(True, 0.9, 1.0), (False, 0.0, 0.8)])
def test_coverage_of_shared_documents(same: bool, least: float, most: float) -> None:
    """Five seeds and the same 26 documents, each with its own rate."""
    inside = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        rates = rng.beta(0.5, 0.5, 26)
        values = [(rng.random((26, 4)) < rates[:, None]).astype(float).ravel() for _ in range(5)]
        labels = np.repeat(np.arange(26), 4).tolist()
        interval = seeded_bootstrap(values, [labels] * 5, 400, trial, same_documents=same)
        inside += interval.low <= 0.5 <= interval.high
    assert least <= inside / 200 <= most


def test_seeds_bad_input() -> None:
    with pytest.raises(ValueError, match="at least one question of every seed"):
        seeded_bootstrap([[1.0], []], [["a"], []], 100, 0)
    with pytest.raises(ValueError, match="2 seeds but clusters of 1"):
        seeded_bootstrap([[1.0], [0.0]], [["a"]], 100, 0)
    with pytest.raises(ValueError, match="not the same documents"):
        seeded_bootstrap([[1.0], [0.0]], [["a"], ["b"]], 100, 0, same_documents=True)

"""What the exam says beyond one number per arm: modes, bounds, what was lost and why, leakage, and when retrieval pays.

Each function makes one block of report.json (evaluation/report/report.py lists them). Shares are in [0, 1], log-probabilities in nats.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.corpus.contamination import contamination
from data.records import Corpus
from evaluation.score_files import Score, closed
from evaluation.scoring.aggregate import Row, as_dict, clusters_of, difference, mean_of, set_scores
from evaluation.scoring.scores import normalise, recall, token_f1
from evaluation.scoring.statistics import cluster_bootstrap, share_of_the_way

BASE = "base"
KNOWN_BEFORE = 0.2
"""A base that answers more than this share closed makes "learnt" and "known before" hard to tell apart."""
HIT_AT = (1, 3, 5, 10)
FORGETTING_SETS = ("replay", "retention")


def modes(score: Score, resamples: int, seed: int) -> dict[str, Any]:
    """Of each mode of an arm: set_scores of the test questions, "minus_closed" (paired EM), mean "logprob" of the answers given and
    "gold_logprob", "context_cut" (share of prompts); of retrieval "hit_at" and "hit_rate" (at as many passages as were shown); of conflict
    "follows_context" and "keeps_to_memory"."""
    rows, k = score.rows, (score.about.get("retrieval") or {}).get("k")
    test = [r for r in rows if r["set"] == "test"]
    alone = closed(test, "test")
    found: dict[str, Any] = {}
    for mode in dict.fromkeys(r.get("mode") or "closed" for r in test):
        of = [r for r in test if (r.get("mode") or "closed") == mode]
        block: dict[str, Any] = {
            **set_scores(of, resamples, seed),
            "minus_closed": None if mode == "closed" else difference(of, alone, resamples, seed),
            "logprob": mean_of(of, "logprob"),
            "gold_logprob": mean_of(of, "gold_logprob"),
            "context_cut": sum(bool(r.get("context_cut")) for r in of) / len(of),
        }
        if mode.startswith("retrieval"):
            block["hit_at"] = hit_rates(of)
            depth = int(mode.partition("_")[2] or k or 0)
            block["hit_rate"] = hit_rates(of, (depth,))[str(depth)] if depth and block["hit_at"] else None
        if mode == "conflict":
            block |= {"follows_context": mean_of(of, "follows"), "keeps_to_memory": mean_of(of, "em")}
        found[mode] = block
    return found


def hit_rates(rows: Sequence[Row], ranks: Sequence[int] = HIT_AT) -> dict[str, float]:
    """Share of the questions whose own document is among the first k passages; empty where no question has a document."""
    linked = [r for r in rows if r["doc_id"] is not None]
    return {str(k): sum((r.get("gold_rank") or k + 1) <= k for r in linked) / len(linked) for k in ranks if linked}


def bounds(scores: Mapping[str, Score], resamples: int, seed: int) -> dict[str, Any] | None:
    """How far each arm got on the way from what the base knew to what the base can do with the documents at hand.

    {"closed": EM of the base alone (the better of zero- and few-shot), "closed_mode", "retrieval", "open", "recovered": {arm: {"retrieval":
    interval, "open"}}}; a share may exceed 1, and is null where the help did not clearly help. None without the base.
    """
    if BASE not in scores:
        return None
    ems = _ems(scores[BASE].rows)
    alone = [mode for mode in ("closed", "few_shot") if mode in ems]
    start = max(alone, key=lambda mode: _mean(ems[mode]))
    clusters = dict(zip(ems["closed"], clusters_of(closed(scores[BASE].rows, "test")), strict=True))

    def share(name: str, goal: str) -> dict[str, float] | None:
        ours = _ems(scores[name].rows)["closed"]
        asked = [q for q in ems.get(goal, {}) if q in ours and q in ems[start]]
        if not asked:
            return None
        gained, possible = ([of[q] - ems[start][q] for q in asked] for of in (ours, ems[goal]))
        found = share_of_the_way(gained, possible, [clusters[q] for q in asked], resamples, seed)
        return as_dict(found) if found else None

    return {
        "closed": _mean(ems[start]),
        "closed_mode": start,
        **{goal: _mean(ems[goal]) if goal in ems else None for goal in ("retrieval", "open")},
        "recovered": {name: {goal: share(name, goal) for goal in ("retrieval", "open")} for name in scores if name != BASE},
    }


def _ems(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Of each mode the EM of every test question."""
    by_mode: dict[str, dict[str, float]] = {}
    for r in rows:
        if r["set"] == "test":
            by_mode.setdefault(r.get("mode") or "closed", {})[r["question_id"]] = r["em"]
    return by_mode


def _mean(of: Mapping[str, float]) -> float:
    return sum(of.values()) / len(of)


def known_before(scores: Mapping[str, Score], resamples: int, seed: int) -> dict[str, Any] | None:
    """{"share": of the test questions that the base answers by itself (zero- or few-shot), "warning", "unknown": {arm: set_scores of the
    others}}. None without the base."""
    if BASE not in scores:
        return None
    test = [r for r in scores[BASE].rows if r["set"] == "test" and (r.get("mode") or "closed") in ("closed", "few_shot")]
    known = {r["question_id"] for r in test if r["em"]}
    asked = {r["question_id"] for r in test}
    share = len(known) / len(asked)
    rest = {name: [r for r in closed(score.rows, "test") if r["question_id"] not in known] for name, score in scores.items()}
    warning = (
        f"the base answers {100 * share:.0f} % of the test questions by itself: look at the scores on the other "
        f"{len(asked) - len(known)} questions, or take documents that it cannot know"
    )
    unknown = {name: set_scores(rows, resamples, seed) for name, rows in rest.items() if rows} if known else {}
    return {"share": share, "warning": warning if share > KNOWN_BEFORE else None, "unknown": unknown}


def by_position(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Of each arm: EM by the third of its document in which the answer stands first, {"first": {"n", "em"}, "middle", "last", "nowhere"}."""
    found: dict[str, Any] = {}
    for name, score in scores.items():
        rows = [r for r in closed(score.rows, "test") if r["doc_id"] is not None]
        groups: dict[str, list[Row]] = {"first": [], "middle": [], "last": [], "nowhere": []}
        for r in rows:
            groups[r.get("position") or "nowhere"].append(r)
        found[name] = {third: {"n": len(of), "em": mean_of(of, "em")} for third, of in groups.items()}
    return found


def wordings(scores: Mapping[str, Score], resamples: int, seed: int) -> dict[str, Any]:
    """Of each arm, on the questions that have other wordings: {"questions", "own": EM as trained, "by_wording": [{"n", "mean", "low", "high"}] of each
    other wording, "worst": {"number", as above} of those that at least half as many questions have as the first, "all": share that is right in its own and in
    every other wording, "minus_own": EM over all other wordings less "own", paired by question}. All but "questions" are intervals; the worst of several is
    lower than any one by luck too."""
    found: dict[str, Any] = {}
    for name, score in scores.items():
        others: dict[str, list[Row]] = {}
        for row in closed(score.rows, "wordings"):
            others.setdefault(row["question_id"], []).append(row)
        own = [row for row in closed(score.rows, "test") if row["question_id"] in others]
        if own:
            found[name] = _in_wordings(own, others, resamples, seed)
    return found


def _in_wordings(own: list[Row], others: Mapping[str, list[Row]], resamples: int, seed: int) -> dict[str, Any]:
    def em(rows: Sequence[Row]) -> dict[str, float]:
        return as_dict(cluster_bootstrap([r["em"] for r in rows], clusters_of(rows), resamples, seed))

    columns = [[of[n] for of in others.values() if len(of) > n] for n in range(max(map(len, others.values())))]
    by_wording = [{"n": len(rows), **em(rows)} for rows in columns]
    # Written wordings are dropped one by one: the last may be a handful's.
    many = [n for n, of in enumerate(by_wording) if 2 * of["n"] >= by_wording[0]["n"]]
    worst = min(many, key=lambda n: by_wording[n]["mean"])
    rows = [{**r, "em": min(r["em"], *(o["em"] for o in others[r["question_id"]]))} for r in own]
    mean = [{**r, "em": sum(o["em"] for o in of) / len(of)} for r in own if (of := others[r["question_id"]])]
    return {
        "questions": len(own),
        "own": em(own),
        "by_wording": by_wording,
        "worst": {"number": worst + 1, **by_wording[worst]},
        "all": em(rows),
        "minus_own": difference(mean, own, resamples, seed),
    }


def lost(scores: Mapping[str, Score]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the base knew and an arm no longer answers: ({arm: counts}, {set: {arm: counts}}) over FORGETTING_SETS, where counts are
    {"known", "lost", "wrong_format", "wrong_fact"}.

    wrong_format: the fact is still in what was said (`says_it`), only not as asked; wrong_fact: it is not.
    """
    by_set: dict[str, dict[str, Any]] = {}
    for set_name in FORGETTING_SETS if BASE in scores else ():
        known = {r["question_id"] for r in closed(scores[BASE].rows, set_name) if r["em"]}
        for name, score in scores.items():
            rows = [r for r in closed(score.rows, set_name) if r["question_id"] in known]
            if name == BASE or not rows:
                continue
            gone = [r for r in rows if not r["em"]]
            said = sum(says_it(r.get("output") or r["answer"], r["gold"]) for r in gone)
            counts = {"known": len(rows), "lost": len(gone), "wrong_format": said, "wrong_fact": len(gone) - said}
            by_set.setdefault(set_name, {})[name] = counts
    totals: dict[str, Any] = {}
    for of in by_set.values():
        for name, counts in of.items():
            before = totals.setdefault(name, dict.fromkeys(counts, 0))
            totals[name] = {key: before[key] + value for key, value in counts.items()}
    return totals, by_set


def retention(scores: Mapping[str, Score], resamples: int, seed: int) -> dict[str, Any] | None:
    """{"questions", "arms": {name: {"em": interval, "minus_base": paired interval or null}}} on exam.retention; None without it."""
    rows = {name: of for name, score in scores.items() if (of := closed(score.rows, "retention"))}
    if not rows:
        return None
    base = rows.get(BASE, [])
    arms = {
        name: {
            "em": set_scores(of, resamples, seed)["em"],
            "minus_base": difference(of, base, resamples, seed) if base and name != BASE else None,
        }
        for name, of in rows.items()
    }
    return {"questions": len(next(iter(rows.values()))), "arms": arms}


def says_it(output: str, golds: Sequence[str]) -> bool:
    """A lenient reading: the gold answer stands anywhere in the output as whole words, or what follows the last "Answer:" (or its first
    clause) has the gold's words in another order or with one more."""
    if recall(output, golds):
        return True
    tail = re.split(r"answer\s*:", output, flags=re.IGNORECASE)[-1].strip()
    candidates = [tail, re.split(r"[\n.;]", tail, maxsplit=1)[0]]
    return any(token_f1(said, golds) >= 0.8 for said in candidates)


def leakage(corpus: Corpus, scores: Mapping[str, Score], resamples: int, seed: int) -> dict[str, Any]:
    """How much of the test questions stands in training, and EM without it.

    {"num_words", "questions", "shared_runs": questions that share a run of so many words with training (data/corpus/contamination.py), "also_trained":
    the same question was trained, "answer_trained": the first gold answer is also the answer of a trained question, "clean": questions that
    are neither of the first two, "arms": {name: {"clean", "answer_not_trained": set_scores or null}}, "examples"}.
    """
    runs = contamination(corpus)
    asked = [r for r in closed(next(iter(scores.values())).rows, "test")] if scores else []
    ids = {r["question_id"] for r in asked}
    shared = set(runs.kinds["questions"].ids) & ids if "questions" in runs.kinds else set()
    overlap = corpus.overlap
    trained = set(overlap.question_ids) & ids if overlap and overlap.policy != "drop_from_train" else set()
    answers = {normalise(q.answers[0]) for split in ("train", "replay") for q in corpus.part(split).questions}  # type: ignore[arg-type]
    known = {r["question_id"] for r in asked if any(normalise(gold) in answers for gold in r.get("gold", [])[:1])}

    def without(score: Score, left_out: set[str]) -> dict[str, Any] | None:
        rows = [r for r in closed(score.rows, "test") if r["question_id"] not in left_out]
        return set_scores(rows, resamples, seed) if rows else None

    return {
        "num_words": runs.num_words,
        "questions": len(ids),
        "shared_runs": len(shared),
        "also_trained": len(trained),
        "answer_trained": len(known),
        "clean": len(ids - shared - trained),
        "arms": {name: {"clean": without(s, shared | trained), "answer_not_trained": without(s, known)} for name, s in scores.items()},
        "examples": runs.examples,
    }


def side_effects(scores: Mapping[str, Score], resamples: int, seed: int) -> dict[str, Any]:
    """How much likelier (nats) the new documents' answers have become as answers to unrelated questions than they were to the base:
    {arm: {"mean", "low", "high", "n"}}; far above 0 the new facts spill over (priming, arXiv 2504.09522)."""
    before = scores[BASE].about.get("side_effects") if BASE in scores else None
    found: dict[str, Any] = {}
    for name, score in scores.items():
        after = score.about.get("side_effects")
        if name == BASE or not before or not after or len(after) != len(before):
            continue
        pairs = [(x, y) for x, y in zip(after, before, strict=True) if x["logprob"] is not None and y["logprob"] is not None]
        if pairs:
            rise = cluster_bootstrap([x["logprob"] - y["logprob"] for x, y in pairs], [x["doc_id"] for x, _ in pairs], resamples, seed)
            found[name] = {**as_dict(rise), "n": rise.n}
    return found


def learning(
    stages_of: Mapping[str, Sequence[str]], by_stage: Mapping[str, Score], totals: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Of each arm its stages in order: {arm: [{"stage", "steps", "tokens", "sets": {name: {"em"}}, "document_loss"}]}.

    `steps` and `tokens` count from the end of the base on; scores stand where the stage was examined. `totals`: of each stage.
    """
    base = set(stages_of.get(BASE, ()))
    found: dict[str, Any] = {}
    for name, keys in stages_of.items():
        steps = tokens = 0
        found[name] = []
        for key in keys:
            if key not in base:
                steps += totals.get(key, {}).get("steps", 0)
                tokens += totals.get(key, {}).get("tokens", 0)
            found[name].append({"stage": key, "steps": steps, "tokens": tokens, **_stage_scores(by_stage.get(key))})
    return found


def _stage_scores(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {}
    sets = dict.fromkeys(r["set"] for r in score.rows)
    documents = [d for d in score.about.get("documents", []) if d["tokens"]]
    whole = documents and all(d["nll"] is not None for d in documents)
    loss = sum(d["nll"] for d in documents) / sum(d["tokens"] for d in documents) if whole else None
    return {"sets": {name: {"em": mean_of(closed(score.rows, name), "em")} for name in sets}, "document_loss": loss}

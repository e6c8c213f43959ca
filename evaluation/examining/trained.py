"""What report.json tells beyond scores: how each stage learnt, who shares stages with whom, what only one arm knows.

All of it is read from the run folder: arms.json, stages/<key>/manifest.json and metrics.jsonl (trainer/worker.py writes them).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.ground.words import first_span
from data.records import Corpus
from evaluation.exam import Exam, sample
from evaluation.score_files import Score, TrainedArm

_POINTS = 120
"""Of a stage's metrics that a plot can show."""
_MEASURED = ("loss", "grad_norm", "rate", "tokens")
_EXAMPLES = 3
_EXCERPT = 320
"""Characters of a document around the answer."""


def collect(folder: Path, arms: Sequence[TrainedArm], scores: Mapping[str, Score], exam: Exam, corpus: Corpus, seed: int) -> dict[str, Any]:
    """Blocks to add to report.json: `stages`, `curricula` and `only_right`."""
    curricula = {arm.name: list(arm.entry.get("stages") or []) for arm in arms}
    keys = dict.fromkeys(key for keys in curricula.values() for key in keys)
    stages = {key: stage for key in keys if (stage := _stage(folder / "stages" / key))}
    rows = {arm.name: [r for r in scores[arm.name].rows if _asked_alone(r)] for arm in arms if arm.name in scores}
    return {"stages": stages, "curricula": curricula, "only_right": only_right(rows, exam, corpus, seed)}


def _asked_alone(row: Mapping[str, Any]) -> bool:
    """A test question without passages beside it."""
    return row["set"] == "test" and (row.get("mode") or "closed") == "closed"


def _stage(folder: Path) -> dict[str, Any] | None:
    """What a stage trained, on what, and its curve; None where the trainer's files are gone."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    job, totals = manifest["job"], manifest["totals"]
    return {
        "label": job["label"],
        "parent": job["parent"],
        "plan_hash": job["plan_sha256"],
        "rate": job["stage"]["rate"],
        "epochs": job["stage"]["epochs"],
        **{key: totals.get(key) for key in ("steps", "tokens", "seconds", "loss")},
        **{key: manifest.get(key) for key in ("world_size", "zero_stage", "precision", "attention")},
        "hosts": len(manifest.get("hosts", [])) or None,  # how many: their names are nobody's business
        "devices": ", ".join(f"{count} × {name}" for name, count in manifest.get("devices", {}).items()) or None,
        "curve": thinned([json.loads(line) for line in lines], _POINTS),
    }


def thinned(metrics: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` ≥ 2 evenly spread lines of metrics.jsonl, the first and the last among them; only what is plotted."""
    count = len(metrics)
    kept = range(count) if count <= most else sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
    return [{key: metrics[i].get(key) for key in ("step", *_MEASURED)} for i in kept]


def only_right(rows: Mapping[str, Sequence[Mapping[str, Any]]], exam: Exam, corpus: Corpus, seed: int) -> dict[str, Any]:
    """Of each arm: how many test questions it alone answered exactly, and a few of them with their documents.

    `rows` are the arms' test rows, the same questions in the same order. Nothing where fewer than two arms are scored.
    """
    if len(rows) < 2:
        return {}
    questions = {q.id: q for name, q in exam.questions if name == "test"}
    texts = {d.id: d.text for part in corpus.parts.values() for d in part.documents}
    found = {}
    for name, own in rows.items():
        others = {other: theirs for other, theirs in rows.items() if other != name}
        alone = [i for i, row in enumerate(own) if row["em"] and not any(theirs[i]["em"] for theirs in others.values())]
        drawn = {q.id for q in sample([questions[own[i]["question_id"]] for i in alone], _EXAMPLES, seed)}
        examples = [
            {
                "question": questions[own[i]["question_id"]].question,
                "gold": list(questions[own[i]["question_id"]].answers),
                "answers": {name: own[i]["answer"], **{other: theirs[i]["answer"] for other, theirs in others.items()}},
                "document": excerpt(texts.get(own[i]["doc_id"] or "", ""), questions[own[i]["question_id"]].answers),
            }
            for i in alone
            if own[i]["question_id"] in drawn
        ]
        found[name] = {"count": len(alone), "examples": examples}
    return found


def excerpt(text: str, answers: Sequence[str], length: int = _EXCERPT) -> str:
    """About `length` characters of a document, whole words, around the first answer that stands in it; else its beginning."""
    at = (first_span(text, answers) or (0, 0))[0]
    start = max(0, min(at - length // 2, len(text) - length))
    end = min(len(text), start + length)
    if start:
        start = text.rfind(" ", 0, start + 1) + 1
    if end < len(text):
        end = nxt if (nxt := text.find(" ", end)) >= 0 else len(text)
    return ("… " if start else "") + " ".join(text[start:end].split()) + (" …" if end < len(text) else "")

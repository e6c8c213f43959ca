"""What a build leaves: records in our own format, an experiment that reads them, and the manifest that says how they came about."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from data.build.making.questions import ORDER, Made, split_of
from data.build.making.reading import Reading
from data.build.making.splits import SplitName
from data.build.making.wordings import FILE as WORDINGS
from data.build.parquet_file import record_file, write_rows
from data.ground.contents import sha256_of
from data.records import Document

MANIFEST = "manifest.json"
FORMAT = 2
FEW_QUESTIONS = 100
_MOST_BATCH, _FEWEST_BATCH = 256, 8
_STEPS_AN_EPOCH = 8
"""At least about so many on the new documents, until a batch is as large as the paper's: with few documents steps are what is missing."""


_HOLDS = {"rewrites": "documents", "asked": "questions"}
"""What a build's methods have written (data/build/making/written.py), and what a row of it is."""


def write_records(out: Path, reading: Reading, splits: dict[str, SplitName], made: Made) -> dict[str, dict[str, int]]:
    """Writes <split>_documents.parquet, <split>_questions.parquet, and <split>_choices.parquet where there are any; returns how many rows
    of each."""
    counts: dict[str, dict[str, int]] = {}
    for split in ORDER:
        documents = (_document_row(document) for document in reading.documents() if split_of(document, splits) == split)
        choices = (_choice_row(row) for row in made.rows[split] if "choices" in row)
        counts[split] = {
            "documents": write_rows(record_file(out, split, "documents"), "documents", documents),
            "questions": write_rows(record_file(out, split, "questions"), "questions", map(_question_row, made.rows[split])),
            "choices": write_rows(record_file(out, split, "choices"), "choices", choices),
        }
    return counts


def _document_row(document: Document) -> dict[str, Any]:
    known = {name: value for name, value in asdict(document).items() if value is not None and name not in ("meta", "quality")}
    return {**known, **(document.meta or {}), "quality": 1.0}


def _question_row(row: dict[str, Any]) -> dict[str, Any]:
    """Multiple choice is asked as an open question too, the right option its answer."""
    return {name: value for name, value in row.items() if name not in ("choices", "answer_index")}


def _choice_row(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if name != "answers"}, "id": row["id"] + "#choice"}


def write_experiments(out: Path, name: str, student: str | None, gpus: int, counts: Mapping[str, dict[str, int]]) -> list[Path]:
    """experiment.yaml (trains on train and validation, examines test); with a validation split search.yaml, which the exam's documents and
    questions stay out of: it is for choosing curricula and rates; with rewrites augmented.yaml: experiment.yaml with them."""
    for stem in ("search", "augmented"):
        (out / f"{stem}.yaml").unlink(missing_ok=True)
    both = ["train", "validation"]
    written = [_experiment(out, "experiment", name, student, gpus, counts, both, "test", ())]
    if counts.get("validation", {}).get("questions"):
        written.append(_experiment(out, "search", f"{name}-search", student, gpus, counts, ["train"], "validation", ()))
    if any(rows.get(what) for rows in counts.values() for what in _HOLDS):
        written.append(_experiment(out, "augmented", f"{name}-augmented", student, gpus, counts, both, "test", tuple(_HOLDS)))
    return written


def _experiment(
    out: Path,
    stem: str,
    name: str,
    student: str | None,
    gpus: int,
    counts: Mapping[str, dict[str, int]],
    trained: list[str],
    exam: str,
    more: tuple[str, ...],
) -> Path:
    num_new = sum(counts[exam].get(what, 0) for what in ("documents", *more))
    num_trained = sum(counts.get(split, {}).get(what, 0) for split in trained for what in ("questions", *more) if what != "rewrites")
    batch = min(_MOST_BATCH, max(_FEWEST_BATCH, num_new // _STEPS_AN_EPOCH))
    sources = [(split, "train", what) for split in trained for what in ("documents", "questions", *more)]
    sources += [(exam, "test", what) for what in ("documents", "questions", "choices", *more)]
    listed = [
        {
            "path": record_file(out, split, what).name,
            "split": becomes,
            "holds": _HOLDS.get(what, what),
            "format": "parquet",
        }
        for split, becomes, what in sources
        if counts.get(split, {}).get(what)
    ]
    worded = any(counts.get(split, {}).get("wordings") for split in (*trained, exam))
    dials: dict[str, Any] = {"batch_items": batch, "sample_questions": min(64, num_trained)}
    # A passage found for a question must be the document's own words: with rewrites nothing is looked up.
    modes = {"modes": ["closed"], "base_modes": ["closed", "few_shot"]} if more else {}
    experiment = {
        "name": name,
        "about": f"Built by python -m data build; examined on the {exam} split, {counts[exam]['questions']} questions.",
        "data": {"root": str(out.resolve()), "sources": listed, **({"wordings": WORDINGS} if worded else {})},
        "model": {"name": student}
        if student
        else {"tiny": {"vocab_size": 8192, "hidden_size": 128, "layers": 2, "head_size": 32, "max_positions": 4096}},
        "dials": dials if student else {"rate_documents": 1.0e-3, "rate_questions": 1.0e-3, **dials},
        "arms": {preset: {"preset": preset} for preset in ("cpt", "standard", "pit")},
        "trainer": {"row_tokens": 4096, **({"zero_stage": 3, "gradient_checkpointing": True} if gpus else {})},
        "exam": {
            **(modes or {"modes": ["closed", "retrieval"], "base_modes": ["closed", "few_shot", "retrieval", "open"]}),
            **({"looks": ["wordings"]} if counts[exam].get("wordings") else {}),
        },
    }
    path = out / f"{stem}.yaml"
    text = yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True, width=140, default_flow_style=None)
    path.write_text(text, encoding="utf-8")
    return path


def interval_points(questions: int) -> float:
    """Half the width, in percentage points, of the 95 % interval of a score of 50 % (normal approximation), were all questions independent.

    Questions of one document are not, so the real one is wider; other scores have a narrower one.
    """
    return 100 * 1.96 * 0.5 / math.sqrt(questions)


def few_questions(questions: int) -> str | None:
    """The warning for a small exam, or None."""
    if questions >= FEW_QUESTIONS:
        return None
    width = interval_points(questions) if questions else 100.0
    return (
        f"only {questions} exam questions: a score of 50 % would be known to ±{width:.0f} points at best (95 %), so arms closer than that "
        "cannot be told apart; give more documents, or a larger --test-share"
    )


def write_manifest(out: Path, about: dict[str, Any]) -> None:
    """Last, whole: a folder with a manifest is a finished build. Hashes of every file that was written stand in it."""
    names = sorted(path.name for path in out.iterdir() if path.is_file() and path.suffix in (".jsonl", ".parquet", ".yaml", ".html"))
    files = {name: {"bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)} for name in names}
    beside = out / f"{MANIFEST}.part"
    beside.write_text(json.dumps({"format": FORMAT, **about, "files": files}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    beside.replace(out / MANIFEST)

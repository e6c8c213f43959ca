"""How often retrieval finds the right document: python -m benchmarks.retrieval DIR (with wiki_bio's train_pages.json and test_pages.json)

The exam's own store over all train and test pages with the packaged embedder; every usable test question asked. Goal: its own document
among the first three passages for at least 98 %. Writes benchmarks/results/retrieval.json.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.result_file import write_result_file
from data.load import load_corpus
from evaluation.asking.prompts import Found
from evaluation.config import RetrievalConfig
from evaluation.examining.retrieval import open_store
from evaluation.report.findings import HIT_AT
from experiment import load_experiment

GOAL = 0.98


def hits(found: list[list[Found]], doc_ids: list[str | None]) -> dict[str, float]:
    """Share of the questions whose own document is among the first k passages."""
    return {
        str(k): sum(any(hit.doc_id == own for hit in of[:k]) for of, own in zip(found, doc_ids, strict=True)) / len(found) for k in HIT_AT
    }


def measure(root: str) -> dict[str, Any]:
    experiment = load_experiment("experiments/wiki_bio_cpu.yaml", [f"data.root={root}"])
    corpus = load_corpus(experiment.data, 0)
    documents = {split: corpus.part(split).documents for split in ("train", "test")}
    questions = [q for q in corpus.part("test").questions if q.doc_id is not None]
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        store = open_store(Path(folder), documents, RetrievalConfig())
        built = time.monotonic()
        found = store.find([q.question for q in questions])
        asked = time.monotonic()
    return {
        **{key: store.about[key] for key in ("embedder", "max_tokens", "passages", "truncated_share", "documents")},
        "questions": len(questions),
        "hit_at": hits(found, [q.doc_id for q in questions]),
        "seconds_building": round(built - start, 1),
        "seconds_asking": round(asked - built, 1),
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.retrieval DIR   (DIR holds train_pages.json and test_pages.json)")
    figures = measure(sys.argv[1])
    write_result_file("retrieval", figures, {"hit_at 3": f">= {GOAL}"}, figures["hit_at"]["3"] >= GOAL)


if __name__ == "__main__":
    main()

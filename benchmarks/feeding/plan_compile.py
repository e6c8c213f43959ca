"""Compiling a plan of a million items: python -m benchmarks.plan_compile

50,000 documents and 950,000 linked questions, questions_first, 3 epochs, in steps of 256: from records in memory to the plan with its
hash and coverage. Goal: under 60 s and under 4 GB on two cores. Writes benchmarks/results/plan_compile.json.
"""

import resource
import time
from typing import Any

from benchmarks.result_file import write_result_file
from data.config import Stage
from data.curriculum.catalogue import catalogue_of
from data.curriculum.plan import compile_plan, coverage
from data.records import Corpus, Document, Part, Question

NUM_DOCUMENTS, NUM_QUESTIONS = 50_000, 950_000
GOAL = {"seconds": 60.0, "peak_gib": 4.0}
TEXT = "A document of a few words. " * 20  # one string shared by all: the records' texts are not what is measured


def made_corpus() -> Corpus:
    """As many records as the goal names."""
    documents = [Document(f"document-{n}", TEXT) for n in range(NUM_DOCUMENTS)]
    answers = ("answer",)
    questions = [Question(f"question-{n}", "What?", answers, f"document-{n % NUM_DOCUMENTS}") for n in range(NUM_QUESTIONS)]
    return Corpus({"train": Part(documents, questions)})


def measure() -> dict[str, Any]:
    """Seconds of each part (wall and CPU) and the peak of resident memory."""
    corpus = made_corpus()
    before = time.monotonic(), time.process_time()
    catalogue = catalogue_of(corpus)
    numbered = time.monotonic()
    mix = {"train_documents": 1, "train_questions": 1}
    stage = Stage.model_validate({"mix": mix, "order": "questions_first", "epochs": 3, "batch_items": 256, "rate": 3e-5})
    plan = compile_plan(stage, catalogue, 0)
    counted = coverage(plan, catalogue)
    after = time.monotonic(), time.process_time()
    assert all(c["least"] == c["most"] == 3 for c in counted.values())
    return {
        "items": len(catalogue),
        "occurrences": len(plan.items),
        "steps": plan.num_steps,
        "seconds": round(after[0] - before[0], 2),
        "cpu_seconds": round(after[1] - before[1], 2),
        "seconds_numbering": round(numbered - before[0], 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    figures = measure()
    holds = all(figures[key] < value for key, value in GOAL.items())
    write_result_file("plan_compile", figures, {key: f"< {value:g}" for key, value in GOAL.items()}, holds)


if __name__ == "__main__":
    main()

"""Which exam texts share a run of 13 words with training: what exact comparison (data/corpus/overlap.py) does not see.

Thirteen words is the usual length (GPT-3, arXiv 2005.14165, appendix C). Trained are the splits train and replay; that the exam's
own documents are trained is the point, so they do not count. Training texts are streamed past a table of the exam's runs:
memory grows with the exam, not with the corpus. Runs compare by 64-bit hashes of their words, normalised as the exact comparison does. In scripts without spaces a character is a
word (data/ground/words.py): thirteen are about eight words, the least length that GPT-3's paper used.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data.ground.words import normalise
from data.records import Corpus
from data.sources.raw_rows import excerpt

NUM_WORDS = 13
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_NUM_EXAMPLES = 5


@dataclass
class Shared:
    """Exam texts of one kind."""

    texts: int = 0
    long_enough: int = 0
    """Those of at least so many words: a shorter one has no run to share."""
    ids: list[str] = field(default_factory=list)
    """Records that share at least one run, in the exam's order."""


@dataclass
class Contamination:
    """The report: by kind (documents, questions, answers), and the first few cases with both places."""

    num_words: int
    kinds: dict[str, Shared]
    examples: list[str]

    def as_dict(self) -> dict[str, Any]:
        kinds = {
            kind: {"texts": s.texts, "long_enough": s.long_enough, "shared": len(s.ids), "ids": s.ids} for kind, s in self.kinds.items()
        }
        return {"num_words": self.num_words, "kinds": kinds, "examples": self.examples}


ExamText = tuple[str, str, str]
"""(kind, record id, text)"""


def contamination(corpus: Corpus, num_words: int = NUM_WORDS) -> Contamination:
    """Exam texts of a corpus against all that train and replay hold."""
    return shared_runs(_exam_texts(corpus), _trained_texts(corpus), num_words)


def shared_runs(exam: Iterable[ExamText], trained: Iterable[tuple[str, str]], num_words: int = NUM_WORDS) -> Contamination:
    """`trained`: (place for people, text), read once and not kept."""
    exam = list(exam)
    report = Contamination(num_words, {}, [])
    hashes, owners = [], []
    for number, (kind, _, text) in enumerate(exam):
        runs = run_hashes(text, num_words)
        shared = report.kinds.setdefault(kind, Shared())
        shared.texts += 1
        shared.long_enough += len(runs) > 0
        hashes.append(runs)
        owners.append(np.full(len(runs), number))
    table, owner = (np.concatenate(part) if part else np.empty(0, dtype=np.uint64) for part in (hashes, owners))
    order = np.argsort(table, kind="stable")
    found = _first_places(table[order], owner[order], trained, num_words)
    for number in sorted(found):
        kind, record_id, text = exam[number]
        report.kinds[kind].ids.append(record_id)
        if len(report.examples) < _NUM_EXAMPLES:
            report.examples.append(f"{kind} {record_id} = {found[number]}: {excerpt(text)}")
    return report


def run_hashes(text: str, num_words: int, code: Callable[[str], int] = hash) -> npt.NDArray[np.uint64]:
    """Hashes of every run of so many words; empty where the text has fewer.

    code: a word's number. Python's own holds within one process only: such hashes are never written down.
    """
    words = normalise(text).split()
    if len(words) < num_words:
        return np.empty(0, dtype=np.uint64)
    codes = np.array([code(word) for word in words], dtype=np.int64).view(np.uint64)
    total = np.zeros(len(words) - num_words + 1, dtype=np.uint64)
    for n in range(num_words):  # a polynomial modulo 2^64; wraps on purpose
        total = total * _FACTOR + codes[n : n + len(total)]
    return total


def _first_places(table: Any, owner: Any, trained: Iterable[tuple[str, str]], num_words: int) -> dict[int, str]:
    """Exam text number → the first training place that shares a run with it."""
    found: dict[int, str] = {}
    if not len(table):
        return found
    for place, text in trained:
        runs = run_hashes(text, num_words)
        left = np.searchsorted(table, runs, side="left")
        right = np.searchsorted(table, runs, side="right")
        for hit in np.flatnonzero(right > left):
            for number in owner[left[hit] : right[hit]]:
                found.setdefault(int(number), place)
    return found


def _exam_texts(corpus: Corpus) -> Iterator[ExamText]:
    exam = corpus.part("test")
    yield from (("documents", document.id, document.text) for document in exam.documents)
    for question in exam.questions:
        yield from (("questions", question.id, question.question), ("answers", question.id, question.answers[0]))
    for choice in exam.choices:
        yield from (("questions", choice.id, choice.question), ("answers", choice.id, choice.choices[choice.answer_index]))


def _trained_texts(corpus: Corpus) -> Iterator[tuple[str, str]]:
    for split in ("train", "replay"):
        part = corpus.part(split)  # type: ignore[arg-type]
        yield from ((f"{split} document {document.id}", document.text) for document in part.all_documents())
        # one text, so that a run may begin in the question and end in the answer
        yield from ((f"{split} question {question.id}", f"{question.question} {question.answers[0]}") for question in part.questions)

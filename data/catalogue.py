"""What can be trained on: the items of a corpus, numbered once, with the links from questions to documents."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

import numpy as np
import numpy.typing as npt

from data.config import Kind
from data.records import Corpus, Document, Question

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Catalogue:
    """Items numbered kind after kind in the order of KINDS; a number means the same in plan and token store."""

    ids: list[str]
    """`kind/record id`, unique."""
    ranges: dict[Kind, range]
    """The item numbers of each kind."""
    document_of: npt.NDArray[np.int64]
    """(items,): for a question the number of its document's item, else -1."""
    records: dict[Kind, list[Document] | list[Question]] = field(default_factory=dict)
    """Empty where only declared counts are known."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digests(self) -> npt.NDArray[np.uint64]:
        """(items,): 64 bits of each id, so that a plan's hash does not depend on the numbering."""
        return np.array([int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") for i in self.ids], dtype=np.uint64)

    def kind_of(self, item: int) -> Kind:
        return next(kind for kind, numbers in self.ranges.items() if item in numbers)


def catalogue_of(corpus: Corpus) -> Catalogue:
    """All trainable items of a corpus. The questions of the test split are never among them."""
    records: dict[Kind, list[Document] | list[Question]] = {}
    for kind in KINDS:
        split, _, what = kind.partition("_")
        part = corpus.part(split)  # type: ignore[arg-type]
        records[kind] = part.documents if what == "documents" else part.questions
    ids: list[str] = []
    ranges: dict[Kind, range] = {}
    for kind, rows in records.items():
        ranges[kind] = range(len(ids), len(ids) + len(rows))
        ids += [f"{kind}/{record.id}" for record in rows]
    assert len(set(ids)) == len(ids), "readers guarantee unique ids"
    number = {item_id: n for n, item_id in enumerate(ids)}
    document_of = np.full(len(ids), -1, dtype=np.int64)
    for kind in ("train_questions", "replay_questions"):
        documents = kind.replace("questions", "documents")
        for n, question in zip(ranges[kind], records[kind], strict=True):  # type: ignore[index]
            assert isinstance(question, Question)
            document_of[n] = number.get(f"{documents}/{question.doc_id}", -1)
    return Catalogue(ids, ranges, document_of, records)


def declared_catalogue(counts: dict[str, int]) -> Catalogue:
    """Stand-in items for a dry run without data: as many as declared, questions spread evenly over documents."""
    ids: list[str] = []
    ranges: dict[Kind, range] = {}
    for kind in KINDS:
        size = counts.get(kind, 0)
        ranges[kind] = range(len(ids), len(ids) + size)
        ids += [f"{kind}/{n}" for n in range(size)]
    document_of = np.full(len(ids), -1, dtype=np.int64)
    for questions, documents in (("train_questions", "train_documents"), ("replay_questions", "replay_documents")):
        q, d = ranges[questions], ranges[documents]  # type: ignore[index]
        if len(d):
            document_of[q.start : q.stop] = d.start + np.arange(len(q)) % len(d)
    return Catalogue(ids, ranges, document_of)

"""What can be trained on: the items of a corpus, numbered once, with the links from questions to documents."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from data.config import Kind
from data.records import Corpus, Document, ManyDocuments, Question

KINDS: tuple[Kind, ...] = get_args(Kind)
Records = list[Document] | list[Question] | ManyDocuments
"""The records of one kind, in order; those of a streamed split are read anew by each iteration and cannot be indexed."""


@dataclass(frozen=True)
class Catalogue:
    """Items numbered kind after kind in the order of KINDS; a number means the same in plan and token store."""

    ids: Sequence[str]
    """`kind/record id`, unique."""
    ranges: dict[Kind, range]
    """The item numbers of each kind."""
    document_of: npt.NDArray[np.int64]
    """(items,): for a question the number of its document's item, else -1."""
    records: dict[Kind, Records] = field(default_factory=dict)
    """Empty where only declared counts are known."""
    declared_tokens: npt.NDArray[np.int64] | None = None
    """(items,): tokens of each item as declared, where only that is known (data.counts, data.tokens_each)."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digests(self) -> npt.NDArray[np.uint64]:
        """(items,): 64 bits of each id, so that a plan's hash does not depend on the numbering."""
        digests = (hashlib.blake2b(item_id.encode(), digest_size=8).digest() for item_id in self.ids)
        return np.fromiter((int.from_bytes(digest, "big") for digest in digests), dtype=np.uint64, count=len(self.ids))

    def kind_of(self, item: int) -> Kind:
        return next(kind for kind, numbers in self.ranges.items() if item in numbers)


class ItemIds(Sequence[str]):
    """The ids of a catalogue's items, put together when they are asked for: a large corpus has many."""

    def __init__(self, ranges: dict[Kind, range], records: dict[Kind, Records]) -> None:
        self._ranges, self._records = ranges, records
        self._len = sum(map(len, ranges.values()))

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, item: Any) -> Any:
        for kind, numbers in self._ranges.items():
            if item in numbers:
                return f"{kind}/{_id_of(self._records[kind], int(item) - numbers.start)}"
        raise IndexError(item)

    def __iter__(self) -> Iterator[str]:
        for kind, rows in self._records.items():
            yield from (f"{kind}/{record_id}" for record_id in _ids_of(rows))


def _id_of(rows: Records, position: int) -> str:
    return rows[position].id if isinstance(rows, list) else rows.id_of(position)


def _ids_of(rows: Records) -> Iterable[str]:
    return (record.id for record in rows) if isinstance(rows, list) else rows.ids()


def digest_records(rows: Records, digest: Any) -> None:
    """Updates a hash with all of the records; those of a streamed split are not read again."""
    if not isinstance(rows, list):
        digest.update(rows.sha256.encode())
        return
    for record in rows:
        digest.update(repr(record).encode())


def catalogue_of(corpus: Corpus) -> Catalogue:
    """All trainable items of a corpus. The questions of the test split are never among them."""
    records: dict[Kind, Records] = {}
    ranges: dict[Kind, range] = {}
    size = 0
    for kind in KINDS:
        split, _, what = kind.partition("_")
        part = corpus.part(split)  # type: ignore[arg-type]
        rows = records[kind] = part.all_documents() if what == "documents" else part.questions
        ranges[kind] = range(size, size + len(rows))
        size += len(rows)
        assert not isinstance(rows, list) or len({record.id for record in rows}) == len(rows), "readers guarantee unique ids"
    document_of = np.full(size, -1, dtype=np.int64)
    # A new question on a document that an earlier run held is trained; its document is replay by now (data/corpus/changes.py).
    read: dict[Kind, tuple[Kind, ...]] = {
        "train_questions": ("train_documents", "replay_documents"),
        "replay_questions": ("replay_documents",),
    }
    for kind, documents in read.items():
        if records[kind]:
            asked = {question.doc_id for question in records[kind] if isinstance(question, Question)} - {None}
            number: dict[str, int] = {}
            for held in documents if asked else ():
                if len(number) < len(asked):
                    number |= {of: n for n, of in zip(ranges[held], _ids_of(records[held]), strict=True) if of in asked}
            for n, question in zip(ranges[kind], records[kind], strict=True):
                assert isinstance(question, Question)
                document_of[n] = number.get(question.doc_id or "", -1)
    return Catalogue(ItemIds(ranges, records), ranges, document_of, records)


def declared_catalogue(counts: dict[str, int], tokens_each: dict[str, int] | None = None) -> Catalogue:
    """Stand-in items for a dry run without data: as many as declared, questions spread evenly over documents.

    `tokens_each`: declared mean tokens of an item of each kind.
    """
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
    known = tokens_each and all(tokens_each.get(kind) for kind, numbers in ranges.items() if numbers)
    tokens = np.repeat([(tokens_each or {}).get(kind, 0) for kind in KINDS], [len(ranges[kind]) for kind in KINDS]) if known else None
    return Catalogue(ids, ranges, document_of, declared_tokens=tokens)

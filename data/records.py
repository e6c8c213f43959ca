"""What every reader yields and every other room consumes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "test", "replay"]


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    text: str
    title: str | None = None
    url: str | None = None
    date: str | None = None
    domain: str | None = None
    source: str | None = None
    meta: dict[str, Any] | None = None
    # A score of the user's chooses records (best_share) and changes none: it is no part of their identity.
    quality: float | None = field(default=None, repr=False, compare=False)
    named: str | None = field(default=None, repr=False, compare=False)
    """The name of the source that it was read from (data.sources, `name`)."""


@dataclass(frozen=True, slots=True)
class Question:
    """`answers[0]` is the one to train on; any of them counts in the exam."""

    id: str
    question: str
    answers: tuple[str, ...]
    doc_id: str | None = None
    level: str | None = None
    domain: str | None = None
    quality: float | None = field(default=None, repr=False, compare=False)
    wordings: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Other words for the same question: of the exam to ask it in, of training to train it in (data/corpus/wordings.py)."""
    named: str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    id: str
    question: str
    choices: tuple[str, ...]
    answer_index: int
    doc_id: str | None = None


Record = Document | Question | ChoiceQuestion


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row that was read and not used. `where` is `path:line` (Parquet: `path:row group g, row r`)."""

    where: str
    reason: str
    excerpt: str = ""
    by_rule: bool = False
    """Left out by a stated rule (a repeated page, drop_answers, the overlap policy): counted, but not a bad row."""
    ends_source: bool = False
    """What follows in the source could not be read: an error under every policy, for nobody knows how many rows that is."""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f": {self.excerpt}" if self.excerpt else "")


class ManyDocuments(Protocol):
    """Documents of a split that are not held: each iteration reads them anew (data/corpus/streamed.py)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Document]: ...

    def ids(self) -> Iterator[str]:
        """In their order; reads nothing."""

    def id_of(self, position: int) -> str: ...

    def text_hashes(self) -> Iterator[str]:
        """Of each document, as data/corpus/changes.py hashes a text."""

    @property
    def sha256(self) -> str:
        """Of all documents."""


@dataclass
class Part:
    """The records of one split."""

    documents: list[Document] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    choices: list[ChoiceQuestion] = field(default_factory=list)
    streamed: ManyDocuments | None = None
    """The split's documents where they are too many to hold; `documents` is empty then."""

    def all_documents(self) -> list[Document] | ManyDocuments:
        return self.documents if self.streamed is None else self.streamed

    def document_ids(self) -> Iterator[str]:
        """In the order of the documents; reads nothing."""
        return (document.id for document in self.documents) if self.streamed is None else self.streamed.ids()


@dataclass
class Intake:
    """What was read from one source: rows_read == rows_used + len(refused), always.

    `notes` counts what a stated rule did to rows that were used ("Ref: line cut": 6136).
    """

    source: str
    rows_read: int = 0
    rows_used: int = 0
    refused: list[Refusal] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Exam items whose normalised text also stands in what is trained (splits train and replay), before the policy acted."""

    policy: str
    question_ids: tuple[str, ...] = ()
    """Exam questions (choices too) that also stand among trained questions: scores on the clean subset leave them out."""
    same_answer: int = 0
    """How many of question_ids are trained with an answer that the exam accepts."""
    document_ids: tuple[str, ...] = ()
    """Exam documents that also stand among trained documents."""
    dropped: dict[str, int] = field(default_factory=dict)
    """What the policy left out, by kind ("train_questions": 3); with a document go its questions."""
    examples: tuple[str, ...] = ()
    """The first few, "exam place = training place: text"."""


@dataclass
class Corpus:
    """All records of an experiment by split, and the account of how they were read.

    Ids are unique over all splits, among the documents and among the questions (choices included).
    """

    parts: dict[Split, Part]
    intakes: list[Intake] = field(default_factory=list)
    overlap: OverlapReport | None = None

    def part(self, split: Split) -> Part:
        return self.parts.setdefault(split, Part())

    def fingerprint(self) -> str:
        """SHA-256 of all records: an exam on other records than were trained would be a wrong number."""
        digest = hashlib.sha256()
        for split in sorted(self.parts):
            part = self.parts[split]
            for record in [*part.documents, *part.questions, *part.choices]:
                digest.update(f"{split} {record!r}".encode("utf-8", "surrogatepass"))
            if part.streamed is not None:
                digest.update(f"{split} {part.streamed.sha256}".encode())
        return digest.hexdigest()

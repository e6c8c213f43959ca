"""Documents in other words, written by the generator: paraphrases of every document, and rewrites of train documents around their questions.

One wording is memorised, several are learnt (Physics of Language Models 3.1, arXiv 2309.14316); PAPER.md's sources add documents that are
centred on a question, one for each (arXiv 2603.23562). Exam questions steer nothing here: rewrites are made of the train split alone.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.build.account import Account
from data.build.exchange import Answers, Request
from data.build.filters import Source, names, supported
from data.build.near import Benchmarks, crc
from data.build.parquet_file import record_file, write_rows
from data.build.prompts import Misread, read_text
from data.build.questions import ORDER, Asking, Made, split_of
from data.build.reading import Reading
from data.build.splits import SplitName
from data.contamination import run_hashes
from data.raw_rows import excerpt
from data.records import Document
from data.words import holds, normalise

STYLES = (
    "an article in an encyclopedia",
    "a plain text for somebody who knows nothing of it",
    "a teacher's notes",
    "a letter to a colleague",
    "a short talk",
)
_RUN = 5
_SAME = 0.9
"""Jaccard similarity of runs of five words from which a text is no other wording."""
_SHORTEST = 0.5
"""Of the document's length: a paraphrase below has lost something."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """paraphrases: of each document; rewrites: for each train question (1: as many synthetic documents as questions)."""

    paraphrases: int = 0
    rewrites: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.paraphrases or self.rewrites)


@dataclass(frozen=True, slots=True)
class _Task:
    way: str
    number: int
    document: Document
    question: dict[str, Any] | None = None

    def request(self, asking: Asking, attempt: int) -> Request:
        if self.question is None:
            template, more = asking.prompts.paraphrase, {"style": STYLES[self.number % len(STYLES)]}
        else:
            template, more = asking.prompts.rewrite, {"question": self.question["question"], "answer": self.question["answers"][0]}
        assert template is not None
        # Every paraphrase is drawn with a seed of its own: the sixth has the first one's style again.
        return asking.text_request(self.document, template, more, self.number, attempt)


def to_write(
    reading: Reading, splits: dict[str, SplitName], asking: Asking, wanted: Wanted, made: Made | None, answers: Answers, attempt: int
) -> Iterator[Request]:
    """As data.build.questions.to_ask. made: None before there are questions; then as if every document had as many as may be asked."""
    for task in _tasks(reading, splits, wanted, made, asking):
        if attempt == 0 or _usable(task, asking, answers, attempt) is None:
            yield task.request(asking, attempt)


def write_rewrites(
    out: Path,
    reading: Reading,
    splits: dict[str, SplitName],
    asking: Asking,
    wanted: Wanted,
    made: Made,
    answers: Answers,
    attempts: int,
    declined: dict[str, str],
    account: Account,
    benchmarks: Benchmarks | None,
) -> dict[str, int]:
    """Writes <split>_rewrites.parquet, documents with `of`, `way` and where each comes from; returns how many of each split."""
    counts: dict[str, int] = {}
    for split in ORDER:
        tasks = (task for task in _tasks(reading, splits, wanted, made, asking) if split_of(task.document, splits) == split)
        rows = (row for group in _grouped(tasks) for row in _kept(group, asking, answers, attempts, declined, account, benchmarks))
        counts[split] = write_rows(record_file(out, split, "rewrites"), "documents", rows)
    return counts


def _kept(
    tasks: list[_Task],
    asking: Asking,
    answers: Answers,
    attempts: int,
    declined: dict[str, str],
    account: Account,
    benchmarks: Benchmarks | None,
) -> Iterator[dict[str, Any]]:
    """The rewrites of one document that are used; the others are in the account."""
    document = tasks[0].document
    kept = [_runs(document.text)]
    for task in tasks:
        found = _usable(task, asking, answers, attempts)
        if found is None:
            reason = next((declined[key] for n in range(attempts) if (key := task.request(asking, n).key) in declined), "")
            said = reason or _beginning(task, asking, answers, attempts)
            account.leave("rewrites", document.id, "the model declined" if reason else "no usable reply", said, by_rule=False)
            continue
        request, text = found
        runs = _runs(text)
        if why := _fault(text, runs, task, kept, asking, benchmarks):
            account.leave("rewrites", document.id, why, text[:200])
            continue
        kept.append(runs)
        account.use("rewrites")
        yield {
            "id": f"{document.id}~{hashlib.sha256(text.encode()).hexdigest()[:8]}",
            **{name: getattr(document, name) for name in ("title", "url", "date", "domain")},
            **{"text": text, "page": (document.meta or {})["page"], "of": document.id, "way": task.way},
            **{"model": request.model, "seed": request.seed, "prompts": asking.prompts.digest(), "reply": request.key},
        }


def _tasks(reading: Reading, splits: dict[str, SplitName], wanted: Wanted, made: Made | None, asking: Asking) -> Iterator[_Task]:
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in made.rows["train"] if made is not None else ():
        asked.setdefault(row["doc_id"], []).append(row)
    unknown = [{"id": str(n), "question": "?" * 80, "answers": ["?" * 20]} for n in range(asking.most)]
    for document in reading.documents():
        for number in range(wanted.paraphrases):
            yield _Task("paraphrase", number, document)
        if wanted.rewrites and split_of(document, splits) == "train":
            for row in asked.get(document.id, ()) if made is not None else unknown:
                for number in range(_times(wanted.rewrites, f"{document.id} {row['id']}")):
                    yield _Task("rewrite", number, document, row)


def _times(rewrites: float, name: str) -> int:
    """1.5: once, and by a hash of the name for half of them twice."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    return int(rewrites) + (share < rewrites % 1)


def _grouped(tasks: Iterable[_Task]) -> Iterator[list[_Task]]:
    """By document; a document's tasks follow each other."""
    group: list[_Task] = []
    for task in tasks:
        if group and group[0].document.id != task.document.id:
            yield group
            group = []
        group.append(task)
    if group:
        yield group


def _usable(task: _Task, asking: Asking, answers: Answers, attempts: int) -> tuple[Request, str] | None:
    """The first reply that is whole and JSON of the right shape."""
    for attempt in range(attempts):
        request = task.request(asking, attempt)
        reply = answers.get(request.key)
        if reply is not None and reply["finish"] != "length" and not isinstance(text := read_text(reply["text"]), Misread):
            return request, text
    return None


def _beginning(task: _Task, asking: Asking, answers: Answers, attempts: int) -> str:
    """Of the last reply."""
    replies = [answers.get(task.request(asking, attempt).key) for attempt in range(attempts)]
    return next((excerpt(reply["text"], 120) for reply in reversed(replies) if reply is not None), "")


def _runs(text: str) -> frozenset[int]:
    return frozenset(run_hashes(text, _RUN, crc).tolist())


def _fault(
    text: str, runs: frozenset[int], task: _Task, kept: list[frozenset[int]], asking: Asking, benchmarks: Benchmarks | None
) -> str | None:
    document = task.document
    if document.title and not names(document.title, text):
        return "does not name its subject"
    if task.question is None and len(text) < _SHORTEST * len(document.text):
        return "much shorter than its document"
    if len(text) > asking.characters:
        return "longer than a document may be"
    if any(len(runs & other) > _SAME * len(runs | other) for other in kept):
        return "nearly the words of its document, or of another rewrite"
    if task.question is not None and not supported(task.question["answers"][0], Source.of(Document(document.id, text, document.title))):
        return "the answer does not stand in it"
    if task.question is not None and holds(normalise(text), normalise(task.question["question"])):
        return "holds the question"
    if benchmarks is not None and benchmarks.holds(text):
        return "shares a run of 13 words with a benchmark"
    return None

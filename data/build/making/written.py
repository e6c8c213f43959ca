"""From replies to documents and questions beside those that were read: by rule, with where each comes from, and every one accounted for."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data.build.asking.exchange import Request
from data.build.asking.methods import SIZES
from data.build.asking.prompts import read_list
from data.build.making.chunks import too_short
from data.build.making.figures import Figures, Runs, runs_of
from data.build.making.filters import Source, Unique, names, supported
from data.build.making.questions import ORDER, Building, Made, rows_of, split_of
from data.build.making.rewrites import EMPTY, Task, examined, kept_names, list_task, tasks, usable
from data.build.making.splits import SplitName
from data.build.parquet_file import record_file, write_rows
from data.ground.words import holds, normalise
from data.records import Document
from data.sources.raw_rows import excerpt

_SAME = 0.9
"""Jaccard similarity of runs of five words from which a text is no other wording."""
READ = "documents"
"""The figures of what was read stand under this name."""


@dataclass
class Written:
    """Rows of each split and what is known of them."""

    documents: dict[str, int] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    """By "method/form"; data.build.making.figures.Figures.as_dict."""


class _Writer:
    def __init__(self, build: Building, declined: dict[str, str], made: Made) -> None:
        self.asking, self.answers, self.declined = build.asking, build.answers, declined
        self.account, self.benchmarks = build.account, build.benchmarks
        self.exam = examined(made)
        self.unique = Unique(build.benchmarks)
        self.figures = {READ: Figures(self.exam)}
        self.questions: dict[SplitName, list[dict[str, Any]]] = {split: [] for split in ORDER}
        for split in ORDER if any(part.step.form == "open" for part in build.asking.parts) else ():
            for row in made.rows[split]:
                self.unique.fault(row["id"], split, row["question"], row["answers"][0])

    def of_document(self, found: list[Task], split: SplitName) -> Iterator[dict[str, Any]]:
        """Rows of the texts of one document that are used; its questions go to `questions`, the others are in the account."""
        document = found[0].document
        own = runs_of(document.text)
        self.figures[READ].add(document.text, own)
        kept = [own]
        self._missing(found, document)
        for task in found:
            figures = self.figures.setdefault(f"{task.part.method}/{task.part.way}", Figures(self.exam))
            self._paid(task, figures)
            reply = usable(task, self.asking, self.answers, self.asking.tries)
            if reply is None:
                self._nothing(task)
            elif task.part.step.form == "list":
                self._list(task, reply[2])
            elif (text := self._text(task, split, *reply)) is not None:
                runs = runs_of(text)
                if why := self._fault(task, text, runs, kept):
                    self.account.leave("rewrites", document.id, why, text[:200])
                    continue
                kept.append(runs)
                figures.add(text, runs, own)
                self.account.use("rewrites")
                yield self._row(task, text, reply[0])

    def _text(self, task: Task, split: SplitName, request: Request, reply: Any, said: Any) -> str | None:
        """What a reply leaves as a document; questions on the exam's documents do so too, for what is asked of these is never trained."""
        if task.part.step.form == "text":
            return str(said)
        document = task.document
        digest = task.part.digest()
        rows = list(rows_of(document, split, "open", request, reply, self.account, self.unique, digest))
        if not rows:
            self.account.leave("answers", document.id, "no question of it is left")
            return None
        self.account.use("answers")
        if split == "test":
            return "\n\n".join(f"{row['question']}\n{row['answers'][0]}" for row in rows)
        self.account.use("questions", len(rows))
        self.questions[split] += [row | {"method": task.part.method, "way": task.part.way} for row in rows]
        figures = self.figures[f"{task.part.method}/{task.part.way}"]
        for row in rows:
            text = f"{row['question']} {row['answers'][0]}"
            figures.add(text, runs_of(text))
        return None

    def _row(self, task: Task, text: str, request: Request) -> dict[str, Any]:
        document, part = task.document, task.part
        return {
            "id": f"{document.id}~{hashlib.sha256(text.encode()).hexdigest()[:8]}",
            **{name: getattr(document, name) for name in ("title", "url", "date", "domain")},
            **{"text": text, "page": (document.meta or {})["page"], "of": document.id, "quality": 0.0},
            **{"method": part.method, "way": part.way, "about": "; ".join(task.names) or None},
            **{"model": request.model, "seed": request.seed, "prompts": part.digest(), "reply": request.key},
        }

    def _list(self, task: Task, said: Any) -> None:
        kept, left = kept_names(task, said)
        for reason, name in left:
            self.account.leave("names", task.document.id, reason, name)
        if kept:
            self.account.use("names", len(kept))
            self.account.use("lists")
        else:
            self.account.leave("lists", task.document.id, EMPTY, "; ".join(said)[:200], by_rule=False)

    def _missing(self, found: list[Task], document: Document) -> None:
        """Parts that a list is too short for."""
        asked = {(task.part.method, task.part.way) for task in found}
        for part in self.asking.parts:
            if part.step.over not in SIZES or (part.method, part.way) in asked:
                continue
            said = usable(list_task(part, document, self.asking), self.asking, self.answers, self.asking.tries)
            if said is not None and kept_names(list_task(part, document, self.asking), said[2])[0]:
                self.account.leave("rewrites", document.id, f"too few names for {part.step.over}", by_rule=False)

    def _nothing(self, task: Task) -> None:
        """No reply that can be used."""
        keys = [task.request(self.asking, attempt).key for attempt in range(self.asking.tries)]
        why = next((self.declined[key] for key in keys if key in self.declined), "")
        replies = [reply for key in keys if (reply := self.answers.get(key)) is not None]
        what = {"list": "lists", "open": "answers"}.get(task.part.step.form, "rewrites")
        said = why or (excerpt(replies[-1]["text"], 120) if replies else "")
        empty = what == "lists" and replies and read_list(replies[-1]["text"], "list") == []
        reason = "the model declined" if why else EMPTY if empty else "no usable reply"
        self.account.leave(what, task.document.id, reason, said, by_rule=False)  # type: ignore[arg-type]

    def _paid(self, task: Task, figures: Figures) -> None:
        for attempt in range(self.asking.tries):
            if (reply := self.answers.get(task.request(self.asking, attempt).key)) is not None:
                figures.paid(reply["prompt_tokens"], reply["answer_tokens"])

    def _fault(self, task: Task, text: str, runs: Runs, kept: list[Runs]) -> str | None:
        document, part, question = task.document, task.part, task.question
        if document.title and not names(document.title, text):
            return "does not name its subject"
        if len(text) < part.step.shortest * len(document.text):
            return "much shorter than its document"
        if too_short(Document(document.id, text)):
            return "too short to say anything"
        if not part.step.tokens and len(text) > self.asking.characters:
            return "longer than a document may be"
        if any(_alike(runs, other) for other in kept):
            return "nearly the words of its document, or of another rewrite"
        if question is not None and not supported(question["answers"][0], Source.of(Document(document.id, text, document.title))):
            return "the answer does not stand in it"
        if question is not None and holds(normalise(text), normalise(question["question"])):
            return "holds the question"
        if self.exam.held(text):
            return "holds a question of the exam"
        if self.benchmarks is not None and self.benchmarks.holds(text):
            return "shares a run of 13 words with a benchmark"
        return None


def _alike(one: Runs, other: Runs) -> bool:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared > _SAME * (len(one) + len(other) - shared)


def write_rewrites(out: Path, build: Building, made: Made, declined: dict[str, str]) -> Written:
    """Writes <split>_rewrites.parquet, documents with `of`, `method`, `way` and where each comes from, and <split>_asked.parquet, questions."""
    written, writer = Written(), _Writer(build, declined, made)
    for split in ORDER:
        mine = (task for task in tasks(build, made) if split_of(task.document, build.splits) == split)
        grouped = (list(group) for _, group in groupby(mine, key=lambda task: task.document.id))
        rows = (row for group in grouped for row in writer.of_document(group, split))
        written.documents[split] = write_rows(record_file(out, split, "rewrites"), "documents", rows)
        written.questions[split] = write_rows(record_file(out, split, "asked"), "questions", writer.questions[split])
    if build.asking.parts:
        written.figures = {name: figures.as_dict() for name, figures in writer.figures.items()}
    return written

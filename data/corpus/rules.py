"""The rules of data/load.py by their numbers: each takes rows on their way into the corpus and leaves out what it must, with the reason."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.corpus.streamed import StreamedDocuments
from data.ground.words import normalise
from data.records import Document, Intake, Question, Record, Refusal, Split
from data.sources.raw_rows import Row, excerpt

Streamed = dict[Split, StreamedDocuments]


@dataclass(slots=True, eq=False)
class Entry:
    """A row on its way into the corpus."""

    row: Row
    record: Record
    split: Split
    intake: Intake

    def refuse(self, reason: str, by_rule: bool = False) -> None:
        quoted = self.record.text if isinstance(self.record, Document) else self.record.question
        self.intake.refused.append(Refusal(self.row.where, reason, excerpt(quoted), by_rule))

    def note(self, what: str) -> None:
        self.intake.notes[what] = self.intake.notes.get(what, 0) + 1


def _sift(entries: list[Entry], reason_of: Callable[[Entry], str | None], by_rule: bool = False) -> list[Entry]:
    """The entries for which there is no reason to leave them out."""
    kept = []
    for entry in entries:
        if reason := reason_of(entry):
            entry.refuse(reason, by_rule)
        else:
            kept.append(entry)
    return kept


def check_documents(entries: list[Entry]) -> list[Entry]:
    """Rule 1, and unique ids across splits."""
    first: dict[tuple[str, str], Entry] = {}
    refused: dict[int, str] = {}  # where, by the identity of the document
    kept = []
    for entry in entries:
        record = entry.record
        if isinstance(record, Document):
            before = first.setdefault((entry.split, record.id), entry)
            if before is not entry:
                assert isinstance(before.record, Document)
                same = before.record.text == record.text
                if not same:
                    refused[id(entry.row.record)] = entry.row.where
                what = "repeats the document" if same else f"duplicate document id {record.id!a}: another text than"
                entry.refuse(f"{what} at {before.row.where}", by_rule=same)
                continue
        kept.append(entry)
    return _sift(kept, lambda e: f"its document was refused ({refused[id(e.row.parent)]})" if id(e.row.parent) in refused else None)


def link(entries: list[Entry], streamed: Streamed) -> list[Entry]:
    """Rule 2; document ids made unique on the way (rule 4)."""
    new_ids: dict[Split, dict[str, str]] = {}
    taken: set[str] = set()
    for entry in entries:
        if isinstance(entry.record, Document):
            new_id = _unique(entry, taken)
            new_ids.setdefault(entry.split, {})[entry.record.id] = new_id
            entry.record = _with(entry.record, id=new_id)
    done: list[StreamedDocuments] = []
    for documents in streamed.values():
        documents.make_ids_unique(taken, done)
        done.append(documents)
    known: dict[Split, Callable[[str], str | None]] = {split: of.get for split, of in new_ids.items()}
    known |= {split: documents.new_id for split, documents in streamed.items()}
    return _sift(entries, lambda e: _link_one(e, known))


def _link_one(entry: Entry, new_id_of: dict[Split, Callable[[str], str | None]]) -> str | None:
    if isinstance(entry.record, Document) or entry.record.doc_id is None:
        return None
    if not new_id_of:
        entry.note("links not checked: no documents were read")
        return None
    for split in [entry.split, *(other for other in new_id_of if other != entry.split)]:
        new_id = new_id_of[split](entry.record.doc_id) if split in new_id_of else None
        if new_id is not None:
            if split != entry.split:
                entry.note(f"linked to a document of split {split}")
            entry.record = _with(entry.record, doc_id=new_id)
            return None
    return f"no document has the id {entry.record.doc_id!a}"


def _with(record: Record, **values: Any) -> Record:
    """`replace`, where something changes: nearly always nothing does, and a corpus has millions of records."""
    return record if all(getattr(record, name) == value for name, value in values.items()) else replace(record, **values)


def _unique(entry: Entry, taken: set[str]) -> str:
    """The id, with the split in front of it as often as it takes to be the only one."""
    new_id = entry.record.id
    while new_id in taken:
        new_id = f"{entry.split}/{new_id}"
    if new_id != entry.record.id:
        entry.note("id taken by another split: split put in front")
    taken.add(new_id)
    return new_id


def leave_out_repeats(entries: list[Entry]) -> list[Entry]:
    """Rule 3. Own ids do not count: the same question under two ids would still be trained twice."""
    first: dict[object, Entry] = {}

    def reason_of(entry: Entry) -> str | None:
        if isinstance(entry.record, Document):
            return None
        before = first.setdefault((entry.split, replace(entry.record, id="")), entry)
        return None if before is entry else f"repeats the question at {before.row.where}"

    return _sift(entries, reason_of, by_rule=True)


def name_questions(entries: list[Entry]) -> list[Entry]:
    """Rule 4. Ids of their own come first, so that no made name takes one away."""
    first: dict[tuple[str, str], Entry] = {}

    def reason_of(entry: Entry) -> str | None:
        if isinstance(entry.record, Document) or not entry.record.id:
            return None
        before = first.setdefault((entry.split, entry.record.id), entry)
        return None if before is entry else f"duplicate question id {entry.record.id!a}: another question than at {before.row.where}"

    entries = _sift(entries, reason_of)
    taken: set[str] = set()
    for entry in entries:
        if not isinstance(entry.record, Document) and entry.record.id:
            entry.record = _with(entry.record, id=_unique(entry, taken))
    numbers: Counter[str] = Counter()
    for entry in entries:
        if not isinstance(entry.record, Document) and not entry.record.id:
            entry.record = replace(entry.record, id=_made_id(entry.record.doc_id, entry.row.fallback_id, numbers, taken))
    return entries


def _made_id(doc_id: str | None, fallback_id: str, numbers: Counter[str], taken: set[str]) -> str:
    stem = doc_id if doc_id is not None else fallback_id
    if doc_id is None and stem not in taken:
        taken.add(stem)
        return stem
    while True:
        numbers[stem] += 1
        made = f"{stem}#{numbers[stem]}"
        if made not in taken:
            taken.add(made)
            return made


def clean_answers(entries: list[Entry], cut_lines: list[str], drop_answers: list[str]) -> list[Entry]:
    """Rules 5 and 6."""
    says_nothing = [normalise(text) for text in drop_answers]

    def reason_of(entry: Entry) -> str | None:
        if not isinstance(entry.record, Question):
            return None
        answers = [_cut(answer, cut_lines, entry) for answer in entry.record.answers]
        kept = tuple(dict.fromkeys(answer for answer in answers if answer and not _is_one_of(answer, says_nothing)))
        if not kept:
            return "answer says nothing" if answers[0] else "nothing is left of the answer after cut_lines"
        if len(kept) < len(answers):
            entry.note("answers left out of a question that has others")
        entry.record = _with(entry.record, answers=kept)
        return None

    return _sift(entries, reason_of, by_rule=True)


def _cut(answer: str, cut_lines: list[str], entry: Entry) -> str:
    if not cut_lines:
        return answer
    kept = []
    for line in answer.splitlines():
        begins = next((begin for begin in cut_lines if line.lstrip().startswith(begin)), None)
        if begins is None:
            kept.append(line)
        else:
            entry.note(f"{begins} line cut")
    return "\n".join(kept).strip()


def _is_one_of(answer: str, says_nothing: list[str]) -> bool:
    said = normalise(answer)
    return any(said == text or said.startswith(text + " ") for text in says_nothing)


def sample(entries: list[Entry], wanted: Mapping[Split, int]) -> list[Entry]:
    """Rule 7."""
    dropped: set[str] = set()
    for split, number in wanted.items():
        ids = [entry.record.id for entry in entries if entry.split == split and isinstance(entry.record, Document)]
        dropped |= set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[number:])

    def reason_of(entry: Entry) -> str | None:
        document = entry.record.id if isinstance(entry.record, Document) else entry.record.doc_id
        return "not in data.sample" if document in dropped else None

    return _sift(entries, reason_of, by_rule=True) if dropped else entries

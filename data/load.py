"""An experiment's sources → one corpus: every row that was read is used, or left out with its place and reason.

The rules, in their order (each row that one leaves out is counted in its Intake):
1. A document id that stands twice in a split: with the same text the repeat is left out by rule, and its questions
   stay, linked to the first; with another text it is refused, and so are the questions nested in it.
2. A question's document is looked for in its own split, then in the others; one that does not exist: refused.
3. A question that repeats another of its split word for word (document, question, answers) is left out by rule.
4. A question without an id is named `<doc_id>#<n>`, or `path:line` without a document. The same id twice in a split:
   refused. Across splits an id that is taken gets its split in front ("test/17"), counted; links follow.
5. Lines of answers that begin with one of cut_lines are cut, counted.
6. Answers that equal one of drop_answers after normalisation, or begin with it ("Information not provided in the
   paragraph."), are dropped; a question with none left is left out by rule.
7. Documents beyond data.sample, and the questions on them, are left out by rule.
8. Documents and questions that stand in training and in the exam: data/overlap.py.
Documents of sources with `stream: true` (data/streamed.py) come under the same rules; where another split uses their id, it is theirs
that gets the split in front.
Rows left out by rule are no bad rows: they neither fail the load nor count towards bad_rows_limit.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from console import UserError, say
from data.config import Bios, DataConfig
from data.overlap import Item, apply_policy, kind_of
from data.readers import check_source, read_source
from data.records import ChoiceQuestion, Corpus, Document, Intake, Part, Question, Refusal, Split
from data.streamed import StreamedDocuments, read_streamed, text_key
from data.validate import Record, Row, excerpt
from data.wordings import with_wordings
from data.words import normalise

Streamed = dict[Split, StreamedDocuments]


@dataclass(slots=True, eq=False)
class _Entry:
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


def load_corpus(config: DataConfig, seed: int, quarantine: Path | None = None) -> Corpus:
    """Reads, checks and cross-checks all records; `seed` is for the made data of data.bios.

    quarantine: where rows that are not used are written, as JSONL {where, reason, excerpt, by_rule}.
    Raises UserError: bad rows beyond what data.bad_rows and bad_rows_limit allow, a source that cannot be read to its
    end, overlap under the policy `refuse`, counts other than declared, nothing left.
    """
    intakes, entries, streamed = _read_sources(config)
    if config.bios:
        made = _read_bios(config.bios, seed)
        intakes, entries = intakes + made[0], entries + made[1]
    if config.sources:
        entries = _check_documents(entries)
        entries = _link(entries, streamed)
        entries = _leave_out_repeats(entries)
        entries = _name_questions(entries)
        entries = _clean_answers(entries, config.cut_lines, config.drop_answers)
        _write_quarantine(intakes, quarantine)  # before judging, so that people can look at it
        _judge(intakes, config)
    entries = _sample(entries, config.sample)
    shared = [(documents, n, item) for documents in streamed.values() for n, item in documents.also_in_exam().items()]
    report, lost = apply_policy(
        [*(Item(e.row.where, e.split, e.record) for e in entries), *(item for _, _, item in shared)], config.overlap
    )
    for position, reason in lost.items():
        if position < len(entries):
            entries[position].refuse(reason, by_rule=True)
        else:
            documents, n, _ = shared[position - len(entries)]
            documents.leave_out(n, reason)
    entries = [entry for position, entry in enumerate(entries) if position not in lost]
    _write_quarantine(intakes, quarantine)
    corpus = Corpus(_parts(entries), intakes, report)
    for split, documents in streamed.items():
        corpus.part(split).streamed = documents
    _settle(entries, intakes, streamed)
    if not config.sample:
        _check_counts(entries, config.counts, streamed)
    return with_wordings(corpus, Path(config.root or "", config.wordings)) if config.wordings else corpus


def _read_sources(config: DataConfig) -> tuple[list[Intake], list[_Entry], Streamed]:
    intakes: list[Intake] = []
    entries: list[_Entry] = []
    for source in config.sources:
        check_source(source)
        if source.stream:
            continue
        intake = Intake(source.path)
        notes: Counter[str] = Counter()
        for row in read_source(source, config.root, notes):
            intake.rows_read += 1
            if isinstance(row, Refusal):
                intake.refused.append(row)
            else:
                entries.append(_Entry(row, row.record, source.split, intake))
        if not intake.rows_read:
            notes["no rows"] += not notes["empty file"]
        intake.notes = {what: n for what, n in notes.items() if n}
        intakes.append(intake)
    exam_texts = {text_key(e.record) for e in entries if e.split == "test" and isinstance(e.record, Document)}
    streamed = read_streamed(config.sources, config.root, exam_texts)
    intakes += [intake for documents in streamed.values() for intake in documents.intakes]
    for intake in intakes:
        if not intake.rows_read:
            say(f"warning: {intake.source}: no rows in it")
    return intakes, entries, streamed


def _read_bios(config: Bios, seed: int) -> tuple[list[Intake], list[_Entry]]:
    from data.bios import make_bios

    made = make_bios(config, seed)
    intake = Intake("bios")
    entries = []
    for split, part in made.parts.items():
        records: list[Record] = [*part.documents, *part.questions, *part.choices]
        for record in records:
            entries.append(_Entry(Row(f"bios:{split}:{record.id}", record, record.id), record, split, intake))
    intake.rows_read = len(entries)
    return [intake], entries


def _sift(entries: list[_Entry], reason_of: Callable[[_Entry], str | None], by_rule: bool = False) -> list[_Entry]:
    """The entries for which there is no reason to leave them out."""
    kept = []
    for entry in entries:
        if reason := reason_of(entry):
            entry.refuse(reason, by_rule)
        else:
            kept.append(entry)
    return kept


def _check_documents(entries: list[_Entry]) -> list[_Entry]:
    """Rule 1, and unique ids across splits."""
    first: dict[tuple[str, str], _Entry] = {}
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


def _link(entries: list[_Entry], streamed: Streamed) -> list[_Entry]:
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


def _link_one(entry: _Entry, new_id_of: dict[Split, Callable[[str], str | None]]) -> str | None:
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


def _unique(entry: _Entry, taken: set[str]) -> str:
    """The id, with the split in front of it as often as it takes to be the only one."""
    new_id = entry.record.id
    while new_id in taken:
        new_id = f"{entry.split}/{new_id}"
    if new_id != entry.record.id:
        entry.note("id taken by another split: split put in front")
    taken.add(new_id)
    return new_id


def _leave_out_repeats(entries: list[_Entry]) -> list[_Entry]:
    """Rule 3. Own ids do not count: the same question under two ids would still be trained twice."""
    first: dict[object, _Entry] = {}

    def reason_of(entry: _Entry) -> str | None:
        if isinstance(entry.record, Document):
            return None
        before = first.setdefault((entry.split, replace(entry.record, id="")), entry)
        return None if before is entry else f"repeats the question at {before.row.where}"

    return _sift(entries, reason_of, by_rule=True)


def _name_questions(entries: list[_Entry]) -> list[_Entry]:
    """Rule 4. Ids of their own come first, so that no made name takes one away."""
    first: dict[tuple[str, str], _Entry] = {}

    def reason_of(entry: _Entry) -> str | None:
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


def _clean_answers(entries: list[_Entry], cut_lines: list[str], drop_answers: list[str]) -> list[_Entry]:
    """Rules 5 and 6."""
    says_nothing = [normalise(text) for text in drop_answers]

    def reason_of(entry: _Entry) -> str | None:
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


def _cut(answer: str, cut_lines: list[str], entry: _Entry) -> str:
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


def _sample(entries: list[_Entry], wanted: Mapping[Split, int]) -> list[_Entry]:
    """Rule 7."""
    dropped: set[str] = set()
    for split, number in wanted.items():
        ids = [entry.record.id for entry in entries if entry.split == split and isinstance(entry.record, Document)]
        dropped |= set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[number:])

    def reason_of(entry: _Entry) -> str | None:
        document = entry.record.id if isinstance(entry.record, Document) else entry.record.doc_id
        return "not in data.sample" if document in dropped else None

    return _sift(entries, reason_of, by_rule=True) if dropped else entries


def _judge(intakes: list[Intake], config: DataConfig) -> None:
    """Raises UserError for bad rows beyond what the settings allow."""
    bad = [refusal for intake in intakes for refusal in intake.refused if not refusal.by_rule]
    if ended := next((refusal for refusal in bad if refusal.ends_source), None):
        raise UserError(f"{ended}; nothing after it can be read, so mend the source")
    if bad and config.bad_rows == "fail":
        more = f"; {len(bad) - 1} more bad rows" if len(bad) > 1 else ""
        numbers = re.search(r" is (a number|a date|true or false), not text", bad[0].reason)
        meant = ", say numbers: text where it is meant" if numbers else ""
        raise UserError(f"{bad[0]}{more}; mend the source{meant}, or set bad rows aside with data.bad_rows=quarantine")
    for intake in intakes:
        own = [refusal for refusal in intake.refused if not refusal.by_rule]
        if len(own) > config.bad_rows_limit * intake.rows_read:
            raise UserError(
                f"{intake.source}: {len(own)} of {intake.rows_read} rows are bad, more than data.bad_rows_limit "
                f"({config.bad_rows_limit:.2%}); the first: {own[0]}"
            )


def _write_quarantine(intakes: list[Intake], path: Path | None) -> None:
    refused = [refusal for intake in intakes for refusal in intake.refused]
    if path is None or not refused:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for r in refused:
            row = {"where": r.where, "reason": r.reason, "excerpt": r.excerpt, "by_rule": r.by_rule}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _parts(entries: list[_Entry]) -> dict[Split, Part]:
    parts: dict[Split, Part] = {}
    for entry in entries:
        part = parts.setdefault(entry.split, Part())
        if isinstance(entry.record, Document):
            part.documents.append(entry.record)
        elif isinstance(entry.record, ChoiceQuestion):
            part.choices.append(entry.record)
        else:
            part.questions.append(entry.record)
    return parts


def _settle(entries: list[_Entry], intakes: list[Intake], streamed: Streamed) -> None:
    """Closes the account: every row that was read is used or refused."""
    used = Counter(id(entry.intake) for entry in entries)
    for documents in streamed.values():
        used.update({id(intake): n for intake, n in zip(documents.intakes, documents.rows_used(), strict=True)})
    for intake in intakes:
        intake.rows_used = used[id(intake)]
        assert intake.rows_read == intake.rows_used + len(intake.refused), f"{intake.source}: rows do not add up"
    if not entries and not any(map(len, streamed.values())):
        raise UserError(
            f"no rows are left of {sum(i.rows_read for i in intakes)} read from {', '.join(i.source for i in intakes)}; look at data.sources, and at what left them out"
        )


def _check_counts(entries: list[_Entry], declared: dict[str, int], streamed: Streamed) -> None:
    """Declared counts are of what is left after all rules: a dry run plans from them."""
    found = Counter(kind_of(Item(e.row.where, e.split, e.record)) for e in entries)
    found.update({f"{split}_documents": len(documents) for split, documents in streamed.items()})
    known = [f"{split}_{holds}" for split in ("train", "test", "replay") for holds in ("documents", "questions", "choices")]
    for kind, num in declared.items():
        if kind not in known:
            raise UserError(f"data.counts: {kind}: unknown kind; known: {', '.join(known)}")
        if found[kind] != num:
            raise UserError(f"data.counts: {kind}: {num} declared, {found[kind]} found; mend the sources or the count")

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
8. Documents and questions that stand in training and in the exam: data/corpus/overlap.py.
Documents of sources with `stream: true` (data/corpus/streamed.py) come under the same rules; where another split uses their id, it is theirs
that gets the split in front.
Rows left out by rule are no bad rows: they neither fail the load nor count towards bad_rows_limit.
"""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from console import UserError, say
from data.config import Bios, DataConfig
from data.corpus.overlap import Item, apply_policy, kind_of
from data.corpus.rules import Entry, Streamed, check_documents, clean_answers, leave_out_repeats, link, name_questions, sample
from data.corpus.streamed import read_streamed, text_key
from data.corpus.wordings import with_wordings
from data.readers import check_source, read_source
from data.records import ChoiceQuestion, Corpus, Document, Intake, Part, Record, Refusal, Split
from data.sources.raw_rows import Row


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
        entries = check_documents(entries)
        entries = link(entries, streamed)
        entries = leave_out_repeats(entries)
        entries = name_questions(entries)
        entries = clean_answers(entries, config.cut_lines, config.drop_answers)
        _write_quarantine(intakes, quarantine)  # before judging, so that people can look at it
        _judge(intakes, config)
    entries = sample(entries, config.sample)
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


def _read_sources(config: DataConfig) -> tuple[list[Intake], list[Entry], Streamed]:
    intakes: list[Intake] = []
    entries: list[Entry] = []
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
                entries.append(Entry(row, _named(row.record, source.name), source.split, intake))
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


def _named(record: Record, name: str | None) -> Record:
    return record if name is None or isinstance(record, ChoiceQuestion) else replace(record, named=name)


def _read_bios(config: Bios, seed: int) -> tuple[list[Intake], list[Entry]]:
    from data.corpus.bios import make_bios

    made = make_bios(config, seed)
    intake = Intake("bios")
    entries = []
    for split, part in made.parts.items():
        records: list[Record] = [*part.documents, *part.questions, *part.choices]
        for record in records:
            entries.append(Entry(Row(f"bios:{split}:{record.id}", record, record.id), _named(record, "bios"), split, intake))
    intake.rows_read = len(entries)
    return [intake], entries


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


def _parts(entries: list[Entry]) -> dict[Split, Part]:
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


def _settle(entries: list[Entry], intakes: list[Intake], streamed: Streamed) -> None:
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


def _check_counts(entries: list[Entry], declared: dict[str, int], streamed: Streamed) -> None:
    """Declared counts are of what is left after all rules: a dry run plans from them."""
    found = Counter(kind_of(Item(e.row.where, e.split, e.record)) for e in entries)
    found.update({f"{split}_documents": len(documents) for split, documents in streamed.items()})
    known = [f"{split}_{holds}" for split in ("train", "test", "replay") for holds in ("documents", "questions", "choices")]
    for kind, num in declared.items():
        if kind not in known:
            raise UserError(f"data.counts: {kind}: unknown kind; known: {', '.join(known)}")
        if found[kind] != num:
            raise UserError(f"data.counts: {kind}: {num} declared, {found[kind]} found; mend the sources or the count")

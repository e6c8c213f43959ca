"""What changed since an earlier run: its records as ids and hashes, the comparison, and the corpus and curriculum that follow from it.

A run leaves records.jsonl: of each document id, split and a hash of the text; of each question its document, a hash of its text, and its
answers. An experiment that starts from that run (`base: runs/NAME:ARM`) is compared with it by document id and text:

- new and changed documents stay in their split, so that the stage language trains them: `mix: {test_documents: 1}`;
- kept documents, whose text is the same to the letter, become documents of the replay split: `mix: {replay_documents: 1}`;
- a train question goes with its document, and stays where the document is kept but the question or its answers are not as before;
- questions of the exam stay in the exam, each `new`, `kept` or `superseded`: its document changed, and so did the answer.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from console import UserError
from data.config import Mix, Stage
from data.ground.words import normalise
from data.records import Corpus, Part, Question

RECORDS_FORMAT = 1
RECORDS = "records.jsonl"
"""In every run folder."""
EARLIER = "earlier.jsonl"
"""Beside a run that starts from another: the records it was compared with, for the exam."""
Status = Literal["new", "kept", "superseded"]


@dataclass(frozen=True)
class Earlier:
    """The records of an earlier run."""

    documents: dict[str, str]
    """Id → hash of the text."""
    answers: dict[tuple[str | None, str], tuple[str, ...]]
    """(document id, hash of the question) → answers."""


@dataclass(frozen=True)
class Changes:
    """Documents by what became of them, and the exam's questions."""

    new: tuple[str, ...]
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    """In the earlier records, and no longer in these."""
    num_new_questions: int
    """Train questions that are new, changed, or of a new or changed document."""
    status: dict[str, Status]
    """Of each exam question, by id."""
    old_answers: dict[str, tuple[str, ...]]
    """Of each superseded exam question, by id: what was right before and is not now."""

    @property
    def nothing_new(self) -> bool:
        return not (self.new or self.changed or self.num_new_questions)

    def in_words(self) -> str:
        counts = f"{len(self.new):,} new, {len(self.changed):,} changed, {len(self.kept):,} kept, {len(self.removed):,} removed documents"
        named = f" (removed: {', '.join(self.removed[:5])}{', …' if len(self.removed) > 5 else ''})" if self.removed else ""
        return counts + named

    def as_dict(self) -> dict[str, Any]:
        statuses = list(self.status.values())
        return {
            "documents": {name: len(getattr(self, name)) for name in ("new", "changed", "kept", "removed")},
            "removed": list(self.removed),
            "exam_questions": {name: statuses.count(name) for name in ("new", "kept", "superseded")},
        }


def run_and_arm(text: str) -> tuple[Path, str]:
    """`runs/NAME:ARM` → its folder and arm; the arm is "" where none is named."""
    folder, colon, arm = text.rpartition(":")
    return (Path(folder), arm) if colon and "/" not in arm else (Path(text), "")


def write_records(path: Path, corpus: Corpus) -> None:
    """Whole or not at all; a few dozen bytes a record."""
    draft = path.with_name(f".{path.name}")
    with draft.open("w", encoding="utf-8") as file:
        for line in _lines(corpus):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    draft.replace(path)


def read_earlier(path: Path) -> Earlier:
    """UserError where the file is missing or is none of ours."""
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(next(file, "null"))
            if not isinstance(head, dict) or head.get("records_format") != RECORDS_FORMAT:
                raise ValueError("another format")
            earlier = Earlier({}, {})
            for line in file:
                row = json.loads(line)
                if "document" in row:
                    earlier.documents[row["document"]] = row["text"]
                else:
                    earlier.answers[row["of"], row["asks"]] = tuple(row["answers"])
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing; run that experiment's `python -m trainer` once more: it trains nothing anew and writes it"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of records ({error}); run that experiment's `python -m trainer` once more") from None
    return earlier


def changes_since(corpus: Corpus, earlier: Earlier) -> tuple[Changes, Corpus]:
    """What changed, and the corpus with what was kept in its replay split. Streamed splits are neither compared nor moved."""
    state: dict[str, str] = {}
    for part in corpus.parts.values():
        for document in part.documents:
            before = earlier.documents.get(document.id)
            state[document.id] = "new" if before is None else "kept" if before == hash_of(document.text) else "changed"
    present = set(state) | {i for part in corpus.parts.values() if part.streamed is not None for i in part.streamed.ids()}
    moved = _moved(corpus, earlier, state)
    exam = corpus.part("test").questions
    status = {question.id: _status(question, earlier, state) for question in exam}
    by_state = {name: tuple(i for i, of in state.items() if of == name) for name in ("new", "changed", "kept")}
    return (
        Changes(
            **by_state,
            removed=tuple(i for i in earlier.documents if i not in present),
            num_new_questions=len(moved.part("train").questions),
            status=status,
            old_answers={q.id: _superseded(q, earlier) for q in exam if status[q.id] == "superseded"},
        ),
        moved,
    )


def fit_stages(stages: Sequence[Stage], whole: Corpus, moved: Corpus) -> list[Stage]:
    """The curriculum for what there is: kinds of which everything was kept leave the mix, and so do riding questions beyond those there are.

    A stage that would then train nothing but replay is left out.
    """
    fitted = []
    for stage in stages:
        emptied = [kind for kind in stage.mix.kinds() if _size(whole, kind) and not _size(moved, kind)]
        kinds = {kind: times for kind, times in stage.mix.kinds().items() if kind not in emptied}
        if any(not kind.startswith("replay") for kind in kinds) or (kinds and not emptied):
            update = {
                "mix": Mix(**kinds),  # type: ignore[arg-type]
                "sources": _sources_left(stage, moved, list(kinds)),
                "best_share": {kind: share for kind, share in stage.best_share.items() if kind in kinds},
                "sample_questions": min(stage.sample_questions, _size(moved, "train_questions")),
                "sample_replay_questions": min(stage.sample_replay_questions, _size(moved, "replay_questions")),
            }
            fitted.append(_without_idle(stage.model_copy(update=update), moved))
    return fitted


def _sources_left(stage: Stage, moved: Corpus, kinds: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Shares of the named sources that something is left of, 1 together again."""
    names = set()
    for kind in kinds if stage.sources else ():
        split, _, what = kind.partition("_")
        part = moved.part(split)  # type: ignore[arg-type]
        names |= {record.named for record in (part.documents if what == "documents" else part.questions)}
    left = {name: shares for name, shares in stage.sources.items() if name in names}
    first, last = (sum(shares[end] for shares in left.values()) for end in (0, 1))

    def share(value: float, total: float) -> float:
        return value / total if total else 1 / len(left)

    return {name: (share(a, first), share(b, last)) for name, (a, b) in left.items()}


def _without_idle(stage: Stage, moved: Corpus) -> Stage:
    """Without what acts on nothing that is left: a teacher that nothing follows, a prefix where no document stands, wordings where no question has others. Then
    it is a stage that could have been written so."""
    idle = {name: Stage.model_fields[name].default for name in stage.idle_fields()}
    if not _size(moved, "train_questions"):
        idle["other_weight"] = Stage.model_fields["other_weight"].default
    if not any(question.wordings for part in moved.parts.values() for question in part.questions):
        idle["wordings"] = 1
    teach, anchor = stage.teach if stage.taught_kinds() else None, stage.anchor if stage.anchored_kinds() else None
    return stage.model_copy(update={"teach": teach, "anchor": anchor, **idle})


def untrained(stages: Sequence[Stage], moved: Corpus) -> list[str]:
    """Kinds with new or changed records that no stage trains."""
    trained = {kind for stage in stages for kind in stage.mix.kinds()}
    return [kind for kind in ("train_documents", "train_questions", "test_documents") if _size(moved, kind) and kind not in trained]


def hash_of(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=15).hexdigest()


def _lines(corpus: Corpus) -> Iterator[dict[str, Any]]:
    yield {"records_format": RECORDS_FORMAT, "records_sha256": corpus.fingerprint()}
    for split in sorted(corpus.parts):
        part = corpus.parts[split]
        for document in part.documents:
            yield {"document": document.id, "split": split, "text": hash_of(document.text)}
        for question in part.questions:
            yield {"question": question.id, "split": split, "of": question.doc_id, "asks": _asks(question), "answers": question.answers}
        if part.streamed is not None:
            for document_id, key in zip(part.streamed.ids(), part.streamed.text_hashes(), strict=True):
                yield {"document": document_id, "split": split, "text": key}


def _moved(corpus: Corpus, earlier: Earlier, state: dict[str, str]) -> Corpus:
    """Kept records in the replay split, the others where they were."""
    moved = Corpus(
        {split: Part(choices=part.choices, streamed=part.streamed) for split, part in corpus.parts.items()}, corpus.intakes, corpus.overlap
    )
    for split, part in corpus.parts.items():
        for document in part.documents:
            moved.part("replay" if state[document.id] == "kept" else split).documents.append(document)
        for question in part.questions:
            kept = split != "test" and _is_kept(question, earlier, state)
            moved.part("replay" if kept else split).questions.append(question)
    if moved.part("replay").documents and moved.part("replay").streamed is not None:
        raise UserError(
            "data.sources: the replay split is streamed, and what the earlier run held already would have to join it; leave out stream"
        )
    return moved


def _is_kept(question: Question, earlier: Earlier, state: dict[str, str]) -> bool:
    of_kept = question.doc_id is None or state.get(question.doc_id, "kept") == "kept"
    return of_kept and earlier.answers.get((question.doc_id, _asks(question))) == question.answers


def _status(question: Question, earlier: Earlier, state: dict[str, str]) -> Status:
    if (question.doc_id, _asks(question)) not in earlier.answers:
        return "new"
    document_changed = question.doc_id is None or state.get(question.doc_id) == "changed"
    return "superseded" if document_changed and _superseded(question, earlier) else "kept"


def _superseded(question: Question, earlier: Earlier) -> tuple[str, ...]:
    """Earlier answers that are no longer among the answers."""
    now = {normalise(answer) for answer in question.answers}
    return tuple(answer for answer in earlier.answers[question.doc_id, _asks(question)] if normalise(answer) not in now)


def _asks(question: Question) -> str:
    return hash_of(question.question)


def _size(corpus: Corpus, kind: str) -> int:
    split, _, what = kind.partition("_")
    part = corpus.part(split)  # type: ignore[arg-type]
    return len(part.all_documents()) if what == "documents" else len(part.questions)

"""Other words for a set's questions, kept beside it: lines of {"question": its own words, "wordings": [other words]}, as `python -m data wordings` writes them.

Of test questions they are asked (`exam.looks: [wordings]`), of the others trained where a stage has `wordings: n`. What is asked is never trained: a wording
of a test question that is also a trained question, or a wording of one, is left out.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from console import UserError
from data.ground.opened import Damaged, open_rows
from data.ground.strict_json import JsonFault, StrictDecoder, bounded_lines, decode_line
from data.ground.words import normalise
from data.records import Corpus, Intake, Part, Refusal


def with_wordings(corpus: Corpus, path: Path) -> Corpus:
    """The same records with their other wordings. Raises UserError for a file that cannot be read, or a bad row: path:line: reason."""
    known, intake = _read(path), Intake(path.name)
    asked = {question.question for part in corpus.parts.values() for question in part.questions}
    intake.rows_read = len(known)
    for question, (place, _) in known.items():
        if question not in asked:
            intake.refused.append(Refusal(f"{path}:{place}", "no question has these words", question[:60], by_rule=True))
    intake.rows_used = intake.rows_read - len(intake.refused)
    if not intake.rows_used:
        raise UserError(
            f"data.wordings: {path}: none of its questions is one of the experiment's; write it anew with python -m data wordings"
        )
    parts = {split: _worded(part, {q: wordings for q, (_, wordings) in known.items()}) for split, part in corpus.parts.items()}
    test = parts.pop("test", Part())
    asked = {
        normalise(text) for text in [*(one.question for one in test.questions), *(one.question for one in test.choices)]
    }  # trained, they would be its questions, whatever data.overlap allows
    parts = {split: _without(part, asked, "trained wordings that the exam asks: left out", intake) for split, part in parts.items()}
    parts["test"] = _without(test, trained_words(parts.values()), "wordings of the exam that are also trained: left out", intake)
    return replace(corpus, parts=parts, intakes=[*corpus.intakes, intake])


def trained_words(parts: Iterable[Part]) -> set[str]:
    """All that may be asked in training, normalised."""
    return {normalise(text) for part in parts for question in part.questions for text in (question.question, *question.wordings)}


def _worded(part: Part, known: dict[str, tuple[str, ...]]) -> Part:
    return replace(part, questions=[replace(q, wordings=known.get(q.question, q.wordings)) for q in part.questions])


def _without(part: Part, taken: set[str], note: str, intake: Intake) -> Part:
    """The same without the wordings that are `taken`, which the note counts."""
    kept = [replace(q, wordings=tuple(w for w in q.wordings if normalise(w) not in taken)) for q in part.questions]
    if lost := sum(len(q.wordings) for q in part.questions) - sum(len(q.wordings) for q in kept):
        intake.notes[note] = intake.notes.get(note, 0) + lost
    return replace(part, questions=kept)


def _read(path: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Question → its line and its wordings."""
    known: dict[str, tuple[int, tuple[str, ...]]] = {}
    try:
        with open_rows(path) as file:
            for number, line, too_long in bounded_lines(file):
                if line.strip():
                    question, wordings = _row(line, too_long, f"{path}:{number}")
                    first, before = known.get(question, (number, ()))
                    known[question] = (first, tuple(dict.fromkeys((*before, *wordings))))  # of two lines for one question both count
    except OSError as error:
        raise UserError(f"data.wordings: {path}: cannot be read: {error.strerror}; write it with python -m data wordings") from None
    except Damaged as error:
        raise UserError(f"data.wordings: {path}: {error}") from None
    return known


def _row(line: bytes, too_long: bool, place: str) -> tuple[str, tuple[str, ...]]:
    try:
        row: Any = decode_line(line.decode("utf-8"), StrictDecoder()) if not too_long else None
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 at byte {error.start + 1}") from None
    except JsonFault as fault:
        raise UserError(f"{place}: {fault.reason}") from None
    question, wordings = (row.get("question"), row.get("wordings")) if isinstance(row, dict) else (None, None)
    if not isinstance(question, str) or not isinstance(wordings, list) or not all(isinstance(w, str) and w.strip() for w in wordings):
        raise UserError(f'{place}: expected {{"question": a text, "wordings": [texts]}}')
    return question, tuple(dict.fromkeys(w.strip() for w in wordings if normalise(w) != normalise(question)))

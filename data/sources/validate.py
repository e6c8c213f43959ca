"""One raw row (a dict from any format) → one record, or the reason why not."""

import contextlib
import datetime
import json
import math
import re
import string
from collections import Counter
from decimal import Decimal
from typing import Any, Literal

from data.config import Source
from data.ground.strict_json import MAX_ROW_BYTES, Spelled
from data.records import ChoiceQuestion, Document, Question, Record
from data.sources.raw_rows import BadRow, excerpt
from data.sources.spelling import LARGEST_EXACT, NoList, listed, spelled

Holds = Literal["documents", "questions", "choices"]

FIELDS: dict[Holds, tuple[str, ...]] = {
    "documents": ("id", "text", "title", "url", "date", "domain", "source", "meta", "quality"),
    "questions": ("id", "doc_id", "question", "answer", "answers", "level", "domain", "quality"),
    "choices": ("id", "doc_id", "question", "choices", "answer", "answer_index"),
}
"""Our field names, for each kind of row; also the columns they are read from unless Source.columns says otherwise."""


_PAGE_HEADER = re.compile(r"\s*<(?P<title>.*?) - Wikipedia (?P<id>[^\s>]+)>\s*")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class RowReader:
    """Turns raw rows of one source into records.

    columns: our field → the file's column; fields not named there are read from the column of their own name.
    notes: counts what was done to rows that are used ("id missing: named after its line": 3).
    numbers: a number, date or truth value in the place of a text is the text it is written as; else the row is bad.
    cells: every value is a text, so that a list can only be one that is written out.
    """

    def __init__(self, columns: dict[str, str], notes: Counter[str], numbers: bool = False, cells: bool = False):
        self.columns = columns
        self.notes = notes
        self.numbers = numbers
        self.cells = cells

    def record(self, holds: Holds, values: dict[str, Any], fallback_id: str) -> Record:
        """The record of a row. A question without an id of its own keeps "" (data.load names it). Raises BadRow."""
        if holds == "documents":
            return self.document(values, fallback_id)
        return self.question(values) if holds == "questions" else self.choice(values)

    def document(self, values: dict[str, Any], fallback_id: str) -> Document:
        text = self.text(values, "text")
        id = self._id(values, "id")
        if id is None:
            self.notes["document without id: named after its place"] += 1
        return Document(
            id=id or fallback_id,
            text=text,
            title=self.optional(values, "title"),
            url=self.optional(values, "url"),
            date=self.optional(values, "date"),
            domain=self.optional(values, "domain"),
            source=self.optional(values, "source"),
            meta=self._meta(values),
            quality=self._quality(values),
        )

    def question(self, values: dict[str, Any], doc_id: str | None = None) -> Question:
        """doc_id: of the document around the question, where the row names none itself."""
        return Question(
            id=self._id(values, "id") or "",
            question=self.text(values, "question"),
            answers=self.answers(values),
            doc_id=self._id(values, "doc_id", nullable=True) or doc_id,
            level=self.optional(values, "level"),
            domain=self.optional(values, "domain"),
            quality=self._quality(values),
        )

    def choice(self, values: dict[str, Any]) -> ChoiceQuestion:
        question = self.text(values, "question")
        given, labels = self._listed(self._value(values, "choices"), "choices"), None
        if isinstance(given, dict) and isinstance(given.get("text"), list) and isinstance(given.get("label"), list):  # as ARC has them
            given, labels = given["text"], given["label"]
        choices = self._texts(given, self._named("choices"))
        if labels is not None and len(labels) != len(choices):
            raise BadRow(f"{self._named('choices')} has {len(choices)} texts and {len(labels)} labels", list(choices))
        if len(choices) < 2:
            raise BadRow(f"{self._named('choices')} has fewer than two entries", list(choices))
        if len(choices) > len(string.ascii_uppercase):
            raise BadRow(f"{self._named('choices')} has more entries than there are letters to name them", list(choices))
        index = self._labelled(values, labels) if labels is not None else self._answer_index(values, len(choices))
        bare = _without_letters(choices)
        if bare != choices:
            self.notes["letters of choices cut"] += 1
        if len(set(bare)) < len(bare):
            raise BadRow(f"{self._named('choices')} has two equal entries", list(choices))
        return ChoiceQuestion(
            id=self._id(values, "id") or "",
            question=question,
            choices=bare,
            answer_index=index,
            doc_id=self._id(values, "doc_id", nullable=True),
        )

    def answers(self, values: dict[str, Any]) -> tuple[str, ...]:
        """From `answer`, from `answers`, or from both (`answer` first): each a text, a list of texts, or as SQuAD has it {text: list}."""
        found: list[str] = []
        for name in ("answer", "answers"):
            if name not in self.columns and name in self.columns.values():  # its column was asked for as the other
                continue
            value = values.get(self._column(name))
            if value is not None:
                found += self._answers(value, name)
        if not found:
            self._value(values, "answers" if self._column("answers") in values else "answer")  # says whether it is missing or null
        return tuple(dict.fromkeys(found))

    def _answers(self, value: Any, name: str) -> tuple[str, ...]:
        named = self._named(name)
        if isinstance(value, str) and (name == "answers" or self.cells) and value.lstrip().startswith("{"):
            value = self._listed(value, name)
        if isinstance(value, dict) and isinstance(value.get("text"), list):
            value, named = value["text"], f"{named}.text"
        elif name == "answers":
            value = self._listed(value, name)
        elif self.cells and isinstance(self._listed(value, name), list):
            raise BadRow(f"{named} is a list in a cell; read it as one with columns: {{answers: {self._column(name)}}}", value)
        if isinstance(value, list) and value and all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in value):
            value, named = [one["text"] for one in value], f"{named}.text"  # SQuAD's answers one by one
        return self._texts(value, named) if isinstance(value, list) else (self._text(value, named),)

    def _listed(self, value: Any, name: str) -> Any:
        try:
            return listed(value)
        except NoList:
            raise BadRow(
                f"{self._named(name)} is a list that was written out as text and cannot be read; write it as JSON", value
            ) from None

    def text(self, values: dict[str, Any], name: str) -> str:
        return self._text(self._value(values, name), self._named(name))

    def _text(self, value: Any, named: str) -> str:
        return _text((spelled(value) if self.numbers else None) or value, named)

    def _texts(self, value: Any, named: str) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise BadRow(f"{named} is {_type(value)}, not a list", value)
        if not value:
            raise BadRow(f"{named} is an empty list")
        return tuple(self._text(entry, f"{named}[{i}]") for i, entry in enumerate(value))

    def optional(self, values: dict[str, Any], name: str) -> str | None:
        """A text, or None; numbers and dates become text. Another type is an error only in a column that was asked for."""
        value = values.get(self._column(name))
        if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN: what pandas writes for nothing
            return None
        if not isinstance(value, bool) and (text := spelled(value)) is not None:
            return text
        if not isinstance(value, str) and name not in self.columns:
            self.notes[f"{name} ignored: {_type(value)}, not text"] += 1
            return None
        return _text(value, self._named(name))

    def _id(self, values: dict[str, Any], name: str, nullable: bool = False) -> str | None:
        column = self._column(name)
        if column not in values and name not in self.columns:
            return None
        value = self._value(values, name) if not nullable else values.get(column)
        if value is None and nullable:
            return None
        if isinstance(value, float | Decimal) and value == value and value == value // 1:
            if isinstance(value, float) and abs(value) >= LARGEST_EXACT:
                raise BadRow(
                    f"{self._named(name)} is a number beyond 2^53 as a float, which cannot hold it to the last digit; write it as text",
                    value,
                )
            value = int(value)  # a column of whole numbers with gaps becomes one of floats in many tools
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return None if value == "" and nullable else self._text(value, self._named(name))

    def _meta(self, values: dict[str, Any]) -> dict[str, Any] | None:
        if "meta" not in self.columns or (value := values.get(self._column("meta"))) is None:
            return None
        if not isinstance(value, dict):
            raise BadRow(f"{self._named('meta')} is {_type(value)}, not an object", value)
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (ValueError, TypeError, RecursionError):
            raise BadRow(f"{self._named('meta')} cannot be written as JSON", value) from None
        return value

    def _quality(self, values: dict[str, Any]) -> float | None:
        """A finite number, or a text that is one (CSV holds only text). Another value is an error only in a column that was asked for."""
        value = values.get(self._column("quality"))
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        number = float("nan")
        if isinstance(value, int | float | str | Decimal) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                number = float(value)
        if math.isfinite(number):
            return number
        if "quality" in self.columns:
            raise BadRow(f"{self._named('quality')} is not a finite number", value)
        self.notes["quality ignored: not a finite number"] += 1
        return None

    def _labelled(self, values: dict[str, Any], labels: list[Any]) -> int:
        """The place of `answer` among the options' own labels."""
        answer = self._value(values, "answer")
        if labels.count(answer) != 1:
            raise BadRow(f"{self._named('answer')} is none of the choices' labels, or of several", answer)
        return labels.index(answer)

    def _answer_index(self, values: dict[str, Any], num_choices: int) -> int:
        """0-based, from `answer_index`, or from the letter in `answer`."""
        if self._column("answer_index") in values:
            index = self._value(values, "answer_index")
            if isinstance(index, str) and index.isdecimal() and len(index) < 3:  # CSV holds only text
                index = int(index)
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < num_choices:
                raise BadRow(f"{self._named('answer_index')} is not a whole number from 0 to {num_choices - 1}", index)
            return index
        if type(values.get(self._column("answer"))) in (int, Spelled):
            raise BadRow(
                f"{self._named('answer')} is a number, not a letter; read it as one (from 0) with columns: {{answer_index: {self._column('answer')}}}",
                values[self._column("answer")],
            )
        letter = self.text(values, "answer")
        if len(letter) != 1 or letter not in _LETTERS[:num_choices]:
            raise BadRow(f"{self._named('answer')} is not a letter from A to {_LETTERS[min(num_choices, 26) - 1]}", letter)
        return _LETTERS.index(letter)

    def _column(self, name: str) -> str:
        return self.columns.get(name, name)

    def _named(self, name: str) -> str:
        column = self._column(name)
        return name if column == name else f"{name} (column {column})"

    def _value(self, values: dict[str, Any], name: str) -> Any:
        column = self._column(name)
        if column not in values:
            raise BadRow(f"{self._named(name)} is missing")
        if values[column] is None:
            raise BadRow(f"{self._named(name)} is {'empty' if self.cells else 'null'}")
        return values[column]


def page_header(text: str) -> tuple[str, str, str] | None:
    """(title, id, text without the header) of `<Title - Wikipedia id> text`, or None without such a header."""
    match = _PAGE_HEADER.match(text)
    return (match["title"].strip(), match["id"], text[match.end() :].strip()) if match else None


def _text(value: Any, named: str) -> str:
    """Stripped, not empty, encodable. Raises BadRow."""
    if not isinstance(value, str):
        raise BadRow(f"{named} is {_type(value)}, not text", value)
    if not (stripped := value.strip()):
        raise BadRow(f"{named} is empty")
    try:
        num_bytes = len(stripped.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadRow(f"{named} holds a lone surrogate {stripped[error.start]!a}", stripped) from None
    if num_bytes > MAX_ROW_BYTES:  # Parquet and datasets: the text formats have refused the row by then
        raise BadRow(f"{named} is longer than {MAX_ROW_BYTES >> 20} MB", stripped[:200])
    return stripped


def _without_letters(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Without "A) ", "B. ", … where every choice carries its own letter."""
    matches = [re.match(rf"{letter}[).:]\s*(\S.*)", choice, re.DOTALL) for letter, choice in zip(_LETTERS, choices, strict=False)]
    found = [match[1] for match in matches if match]
    return tuple(found) if len(found) == len(choices) else choices


def _type(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
        bytes: "bytes",
        Decimal: "a number",
        datetime.date: "a date",
        datetime.datetime: "a date",
        Spelled: "a number",
        type(None): "null",
        str: "text",
    }
    return names.get(type(value), type(value).__name__)


def header_fault(columns: list[str], source: Source) -> str | None:
    """What is wrong with a table's columns: one given twice, or one missing that was asked for or that no row can do without."""
    if twice := [name for name in columns if name and columns.count(name) > 1]:  # a spreadsheet's empty columns have no name
        return f"duplicate column {twice[0]!a}"
    for column in [*source.columns.values(), *(source.columns.get(name, name) for name in needed_fields(source))]:
        if column not in columns:
            near = next((name for name in columns if name.strip().casefold() == column.casefold()), None)
            hint = f"; say columns: {{{column}: {near}}}" if near and near.isprintable() else ""
            return f"no column {column!a} (columns: {excerpt(', '.join(columns), 200)}){hint}"
    return None


def needed_fields(source: Source) -> list[str]:
    """Our fields that no row can do without."""
    return {"documents": ["text"], "questions": ["question"], "choices": ["question", "choices"], "both": []}[source.holds]


def used_columns(columns: list[str], source: Source) -> list[str]:
    """The columns of a table that become fields."""
    assert source.holds != "both"
    used = {source.columns.get(name, name) for name in FIELDS[source.holds]}
    return [name for name in columns if name in used]

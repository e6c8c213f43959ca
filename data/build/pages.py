"""One file → its pages: the text of a document with what is known about it, or the reason why there is none.

A page is a whole file, or one row of a table.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from console import UserError
from data.build.confined import Confined
from data.build.walk import TABLES, Found, open_inside
from data.config import Source
from data.readers import read_source
from data.records import Document, Refusal
from data.strict_json import bounded_lines
from data.tables import parquet_has_extension_types

_LONGEST_LINE = 1 << 20
_TITLE_CHARACTERS = 120
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_HEADING = re.compile(r"^#{1,2} +(.+?) *#*$", re.MULTILINE)
_COLUMNS = {
    "text": ("text", "description", "body", "content", "article", "abstract", "document", "summary"),
    "title": ("title", "name", "heading", "headline", "subject"),
    "date": ("date", "published", "published_at", "created_at", "timestamp"),
    "domain": ("domain", "category", "topic", "section"),
    "url": ("url", "link"),
}
"""Our field → column names that are taken for it, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Page:
    name: str
    """The file's path below the folder; of a table `path:12` (a row's place, data/readers.py)."""
    title: str
    """What it is about, for people and for the questions to name."""
    text: str
    format: str
    language: str | None = None
    """Of code: which; of prose it is found out later."""
    date: str | None = None
    domain: str | None = None
    url: str | None = None


def read_pages(found: Found, root: Path, confined: Confined, columns: dict[str, str]) -> Iterator[Page | Refusal]:
    """columns: our field → a table's column, where its name does not tell."""
    try:
        if found.format == "table":
            yield from _rows(found, root, columns)
        elif found.format in ("html", "pdf"):
            yield _extracted(found, confined)
        else:
            yield _text(found)
    except OSError as error:
        yield Refusal(found.name, f"cannot be read: {error.strerror}")
    except UserError as error:  # of one file; the others are read
        yield Refusal(found.name, str(error))


def _text(found: Found) -> Page | Refusal:
    with open_inside(found.path) as file:
        content = file.read(found.size + 1)
    if len(content) > found.size:
        return Refusal(found.name, "has grown while it was read; try again")
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        return Refusal(found.name, f"not {error.encoding.upper()} at byte {error.start + 1}; save it as UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (longest := max(map(len, text.split("\n")))) > _LONGEST_LINE:
        return Refusal(found.name, f"a line of {longest:,} characters: data or minified, no text to read")
    if not text.strip():
        return Refusal(found.name, "empty", by_rule=True)
    if found.format == "code":
        return Page(found.name, found.name, text, "code", found.language)
    if found.format == "markdown":
        return _markdown(found.name, text)
    first = text.strip().split("\n", 1)
    title = first[0].strip() if len(first) > 1 and len(first[0]) <= _TITLE_CHARACTERS else _stem(found.name)
    return Page(found.name, title, text, "text")


def _markdown(name: str, text: str) -> Page:
    about: dict[str, str] = {}
    if matter := _FRONT_MATTER.match(text):
        text = text[matter.end() :]
        for line in matter[1].split("\n"):
            key, colon, value = line.partition(":")
            if colon:
                about[key.strip().lower()] = value.strip().strip("\"'")
    heading = _HEADING.search(text)
    title = about.get("title") or (heading[1] if heading else _stem(name))
    return Page(name, title[:_TITLE_CHARACTERS], text, "markdown", date=about.get("date") or None, domain=about.get("category") or None)


def _extracted(found: Found, confined: Confined) -> Page | Refusal:
    answer = confined.read(found.format, found.path)
    if "error" in answer:
        return Refusal(found.name, answer["error"])
    text = answer["text"].strip()
    if not text:
        return Refusal(found.name, "no text in it", by_rule=True)
    title = " ".join((answer.get("title") or "").split())[:_TITLE_CHARACTERS] or _stem(found.name)
    return Page(found.name, title, text, found.format, date=answer.get("date"))


def _stem(name: str) -> str:
    return re.sub(r"[-_]+", " ", Path(name).stem).strip() or name


def _rows(found: Found, root: Path, columns: dict[str, str]) -> Iterator[Page | Refusal]:
    names = _column_names(found)
    if isinstance(names, Refusal):
        yield names
        return
    guessed = {field: near for field, known in _COLUMNS.items() if (near := next((c for c in known if c in names), None))}
    chosen = {**guessed, **{field: column for field, column in columns.items() if column in names}}
    if "text" not in chosen:
        yield Refusal(found.name, f"no column of text (columns: {', '.join(names)[:200]}); name it with --column text=COLUMN")
        return
    chosen = {field: column for field, column in chosen.items() if field != column}
    source = Source(path=found.name, split="train", holds="documents", format=TABLES[Path(found.name).suffix.lower()], columns=chosen)  # type: ignore[arg-type]
    for row in read_source(source, root, Counter()):
        if isinstance(row, Refusal):
            yield Refusal(
                found.name + row.where.removeprefix(str(Path(root, found.name))), row.reason, row.excerpt, row.by_rule, row.ends_source
            )
            continue
        assert isinstance(row.record, Document)
        yield _row_page(row.fallback_id, row.record)


def _row_page(place: str, record: Document) -> Page:
    title = " ".join((record.title or "").split())[:_TITLE_CHARACTERS]
    # As data/nested.py words {title, description}: on lines of their own.
    text = f"{title}\n{record.text}" if title and not record.text.startswith(title) else record.text
    return Page(place, title or _stem(place), text, "table", date=record.date, domain=record.domain, url=record.url)


def _column_names(found: Found) -> list[str] | Refusal:
    """Of JSONL: the keys of the first row that is an object."""
    suffix = found.path.suffix.lower()
    if suffix == ".parquet":
        if parquet_has_extension_types(found.path):
            return Refusal(found.name, "has an Arrow extension type; write it with plain columns (text, numbers, lists)")
        try:
            return list(pq.read_schema(found.path).names)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            return Refusal(found.name, "not a readable Parquet file (fake or truncated)")
    with open_inside(found.path) as file:
        for _, line, too_long in bounded_lines(file):
            if too_long or not line.strip():
                continue
            text = line.decode("utf-8-sig", "replace")
            if suffix == ".csv":
                return _header(text)
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                return list(row)
    return Refusal(found.name, "no row that is an object {…}")


def _header(line: str) -> list[str]:
    """Empty where the readers will say what is wrong with it."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []

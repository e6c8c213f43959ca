"""One file → its pages: the text of a document with what is known about it, or the reason why there is none.

A page is a whole file, or one row of a table.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from console import UserError
from data.build.confined import Confined
from data.build.documents.titles import front_matter, markdown_title, text_title, title_of
from data.build.walk import Found, open_inside
from data.config import Source
from data.readers import filled_columns, read_source
from data.records import Document, Refusal
from data.sources.raw_rows import Fault
from data.sources.sheets import sheet_names

_LONGEST_LINE = 1 << 20
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
    title: str | None
    """What it is about, for people and for the questions to name; None where nothing says so (data/build/documents/titles.py)."""
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
            yield from _tables(found, root, columns)
        elif found.format in ("text", "markdown", "code"):
            yield _text(found)
        else:
            yield _extracted(found, confined)
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
        return Page(found.name, None, text, "code", found.language)
    if found.format == "markdown":
        return _markdown(found.name, text)
    return Page(found.name, text_title(text), text, "text")


def _markdown(name: str, text: str) -> Page:
    about, text = front_matter(text)
    title = title_of(about.get("title"), declared=True) or markdown_title(text)
    return Page(name, title, text, "markdown", date=about.get("date"), domain=about.get("category") or about.get("categories"))


def _extracted(found: Found, confined: Confined) -> Page | Refusal:
    answer = confined.read(found.format, found.path)
    if "error" in answer:
        return Refusal(found.name, answer["error"])
    text = answer["text"].strip()
    if not text:
        return Refusal(found.name, "no text in it", by_rule=True)
    return Page(
        found.name,
        title_of(answer.get("title")) or title_of(answer.get("heading")) or (markdown_title(text) if found.format == "ipynb" else None),
        text,
        found.format,
        date=answer.get("date"),
    )


def _tables(found: Found, root: Path, columns: dict[str, str]) -> Iterator[Page | Refusal]:
    """One, but for a workbook of several sheets, which are read one after the other."""
    source = Source(path=found.name, split="train", holds="documents", numbers="text")
    sheets = sheet_names(found.path) if source.format == "xlsx" else []
    if isinstance(sheets, Fault) or len(sheets) < 2:
        yield from _rows(found, found.name, source, root, columns)
        return
    for sheet in sheets:
        yield from _rows(found, f"{found.name}:{sheet}", source.model_copy(update={"configuration": sheet}), root, columns)


def _rows(found: Found, name: str, source: Source, root: Path, columns: dict[str, str]) -> Iterator[Page | Refusal]:
    """name: of the table, for people."""
    filled = filled_columns(found.path, source)
    if isinstance(filled, Refusal):
        yield replace(filled, where=name, by_rule=filled.by_rule or filled.reason.startswith("one object"))
        return
    chosen = {**_guessed(filled), **{field: column for field, column in columns.items() if column in filled}}
    if "text" not in chosen:
        names = ", ".join(filled)[:200]
        yield Refusal(name, f"no column of text (columns: {names}); name it with --column text=COLUMN")
        return
    chosen = {field: column for field, column in chosen.items() if field != column}
    for row in read_source(source.model_copy(update={"columns": chosen}), root, Counter()):
        if isinstance(row, Refusal):
            yield replace(row, where=found.name + row.where.removeprefix(str(Path(root, found.name))))
            continue
        assert isinstance(row.record, Document)
        yield _row_page(row.fallback_id, row.record)


def _guessed(filled: dict[str, int]) -> dict[str, str]:
    """Our field → column by its name, whatever its capitals: the likeliest name of those columns that are filled in at least half as many
    rows as the fullest of them. One stray row decides nothing."""
    chosen = {}
    for field, known in _COLUMNS.items():
        near = [(rank, name) for name in filled for rank, k in enumerate(known) if name.strip().casefold() == k]
        most = max((filled[name] for _, name in near), default=0)
        if enough := [(rank, name) for rank, name in near if 2 * filled[name] >= most > 0]:
            chosen[field] = min(enough)[1]
    return chosen


def _row_page(place: str, record: Document) -> Page:
    title = title_of(record.title, declared=True)
    # As data/sources/nested.py words {title, description}: on lines of their own.
    text = f"{title}\n{record.text}" if title and not record.text.startswith(title) else record.text
    return Page(place, title, text, "table", date=record.date, domain=record.domain, url=record.url)

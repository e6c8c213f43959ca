"""JSON lists: of plain rows, and of documents with their questions, each a row of its own."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.config import Source
from data.ground.opened import Damaged, open_rows
from data.ground.strict_json import BOM, Element, scan_list
from data.records import Document, Refusal
from data.sources.raw_rows import BadRow, Fault, Raw, Row, excerpt, refusal
from data.sources.validate import RowReader, page_header

_LONGEST_LIST = 4 << 30
"""Bytes: a list is held whole while it is read."""
_PAIR_NAMES = {"text": "question", "output": "answer"}


def list_rows(path: Path) -> Iterator[Raw | Fault]:
    """The elements of a file that is one JSON list."""
    for element in _elements(path):
        if isinstance(element, Fault):
            yield element
        elif fault := _element_fault(element):
            yield fault
        else:
            yield Raw(element.place, element.value)


def _elements(path: Path) -> Iterator[Element | Fault]:
    try:
        with open_rows(path) as file:
            content = file.read(_LONGEST_LIST + 1).removeprefix(BOM)
    except Damaged as error:
        yield Fault("", str(error), ends=True)
        return
    if len(content) > _LONGEST_LIST:
        yield Fault("", f"a list of more than {_LONGEST_LIST >> 30} GB; write it as an object a line (.jsonl)", ends=True)
        return
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield Fault(f":{line}", "not UTF-8", content[max(0, error.start - 30) : error.start + 30], ends=True)
        return
    yield from scan_list(text)


def _element_fault(element: Element) -> Fault | None:
    if element.fault is None:
        return None
    return Fault(element.place, element.fault.reason, element.text, ends=element.fault.broken)


def nested_rows(path: Path, source: Source, shown: str, notes: Counter[str]) -> Iterator[Row | Refusal]:
    """Documents and questions of an `interleaved` or `wiki_pages` file; a refused document takes its questions with it."""
    walker = _Walker(source, shown, notes)
    visit = walker.interleaved if source.format == "interleaved" else walker.page
    for element in _elements(path):
        fault = element if isinstance(element, Fault) else _element_fault(element)
        if fault:
            walker.document_lost = walker.document_id = walker.parent = None
            walker.document_lost = shown + fault.place
            yield refusal(shown, fault)
        elif isinstance(element, Element):
            yield from visit(element)


class _Walker:
    """Reads documents and the questions that belong to the document before (or around) them."""

    def __init__(self, source: Source, shown: str, notes: Counter[str]):
        self.source, self.shown, self.notes = source, shown, notes
        self.reader = RowReader({}, notes, source.numbers == "text")
        self.document_id: str | None = None
        self.parent: Document | None = None
        self.document_lost: str | None = None
        """Where the document of the questions to come was refused."""

    def interleaved(self, element: Element) -> Iterator[Row | Refusal]:
        """{"type": "doc", "document": text or {title, description}} or {"type": "qna", "question", "answer"}."""
        values = element.value
        kind = values.get("type") if isinstance(values, dict) else None
        place = element.place
        if kind == "doc":
            yield from self._document(_interleaved_values(values), place, element.text)
        elif kind == "qna":
            yield from self._question(values, place, "", element.text)
        else:
            self.document_lost = self.shown + place  # it may have been a document
            reason = 'expected an object with "type": "doc" or "qna"'
            yield Refusal(self.shown + place, reason, excerpt(element.text))

    def page(self, element: Element) -> Iterator[Row | Refusal]:
        """{"evidence_text": "<Title - Wikipedia id> …", "qa_pairs": [{"text", "output"}], "id"?, "date"?}."""
        place = element.place
        if not isinstance(element.value, dict):
            yield Refusal(self.shown + place, "a page must be an object {…}", excerpt(element.text))
            return
        yield from self._document(_page_values(element.value), place, element.text)
        pairs = element.value.get("qa_pairs", [])
        if not isinstance(pairs, list):
            yield Refusal(self.shown + place, "qa_pairs is not a list", excerpt(pairs))
            return
        for number, pair in enumerate(pairs):
            prefix = f"qa_pairs[{number}]: "
            if isinstance(pair, dict):
                yield from self._question({str(_PAIR_NAMES.get(key, key)): value for key, value in pair.items()}, place, prefix, pair)
            else:
                yield Refusal(self.shown + place, prefix + "expected an object {text, output}", excerpt(pair))

    def _document(self, values: dict[str, Any], place: str, quoted: Any) -> Iterator[Row | Refusal]:
        where = self.shown + place
        self.document_id = self.parent = self.document_lost = None
        if self.source.holds == "questions":
            self.notes["documents skipped: the source holds questions"] += 1
            self.document_id = self._silent_id(values, place)
            return
        try:
            document = self.reader.document(values, self.source.path + place)
        except BadRow as bad:
            self.document_lost = where
            yield Refusal(where, bad.reason, excerpt(quoted if bad.value is None else bad.value))
            return
        self.document_id, self.parent = document.id, document
        yield Row(where, document, self.source.path + place)

    def _silent_id(self, values: dict[str, Any], place: str) -> str | None:
        try:
            document = RowReader({}, Counter()).document(values, "")
        except BadRow:
            return None
        return document.id or None  # a document that is not read here can only be linked by an id of its own

    def _question(self, values: dict[str, Any], place: str, prefix: str, quoted: Any) -> Iterator[Row | Refusal]:
        where = self.shown + place
        if self.source.holds == "documents":
            self.notes["questions skipped: the source holds documents"] += 1
            return
        if self.document_lost:
            yield Refusal(where, f"{prefix}its document was refused ({self.document_lost})", excerpt(quoted))
            return
        parent = None if "doc_id" in values else self.parent
        try:
            question = self.reader.question(values, self.document_id)
        except BadRow as bad:
            yield Refusal(where, prefix + bad.reason, excerpt(quoted if bad.value is None else bad.value))
            return
        yield Row(where, question, self.source.path + place, parent)


def _interleaved_values(values: dict[str, Any]) -> dict[str, Any]:
    """`document` is the text, or an object whose title belongs to the text: it may hold facts that the description lacks."""
    document = values.get("document")
    flat = {k: v for k, v in values.items() if k not in ("type", "document")}
    if not isinstance(document, dict):
        return flat if "document" not in values else flat | {"text": document}
    flat |= {key: value for key, value in document.items() if key != "description"}
    if "text" in document or not document.keys() & {"title", "description"}:
        return flat
    parts = [document[key] for key in ("title", "description") if document.get(key) not in (None, "")]
    odd = next((part for part in parts if not isinstance(part, str)), None)
    return flat | {"text": odd if odd is not None or not parts else "\n".join(map(str.strip, parts))}


def _page_values(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {k: values[k] for k in ("id", "date", "url", "domain", "quality") if k in values}
    if "page_title" in values and isinstance(values["page_title"], str):
        flat["title"] = values["page_title"].removesuffix(" - Wikipedia")
    text = values.get("evidence_text")
    if isinstance(text, str) and (header := page_header(text)):
        title, id, text = header
        flat = {"id": id, **flat, "title": title}
    if "evidence_text" in values:
        flat["text"] = text
    return flat

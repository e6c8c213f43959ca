"""Questions and documents from files that no experiment names: retention sets, `examine`, `ask`."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from console import UserError
from data.config import Source
from data.ground.formats import format_of
from data.readers import read_source
from data.records import Document, Question, Refusal

_TEXT_FORMATS = (".txt", ".md")


def read_questions(path: Path) -> list[Question]:
    """Rows {"question", "answers": a text or several, "id"?, "doc_id"?} of any table (data.ground.formats.ENDINGS); or a .json file {"instances":
    [{"text", "output"}]} as that of the Natural Questions in Effective-Knowledge-Injection, where the question is the last of a few-shot `text`.

    Raises UserError with `path:line: reason` at the first bad row.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of questions")
    if path.suffix == ".json" and _is_one_object(path):
        return _instances(path)
    source = Source(path=path.name, split="test", holds="questions")
    questions = []
    for row in read_source(source, path.parent, Counter()):
        if isinstance(row, Refusal):
            raise UserError(str(row))
        assert isinstance(row.record, Question)
        questions.append(row.record if row.record.id else replace(row.record, id=row.fallback_id))
    return _some(questions, path)


def _is_one_object(path: Path) -> bool:
    """Neither a list nor an object a line."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (ValueError, RecursionError):
        return False  # the reader of rows says what is wrong, and where


def _instances(path: Path) -> list[Question]:
    try:
        instances = json.loads(path.read_text(encoding="utf-8"))["instances"]
    except KeyError:
        raise UserError(
            f'{path}:1: expected {{"instances": [{{"text", "output"}}]}}; or lines of {{"question", "answers"}} in a .jsonl'
        ) from None
    questions = []
    for n, instance in enumerate(instances):
        text, output = (instance.get("text"), instance.get("output")) if isinstance(instance, dict) else (None, None)
        golds = [output] if isinstance(output, str) else output
        asked = re.findall(r"^Question:\s*(.+?)\s*$", text, flags=re.MULTILINE) if isinstance(text, str) else []
        if not asked:
            raise UserError(f'{path}: instances[{n}]: no line "Question: …" in its text')
        if not isinstance(golds, list) or not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
            raise UserError(f"{path}: instances[{n}]: its output is no text and no list of texts")
        questions.append(Question(f"{path.stem}-{n}", asked[-1], tuple(golds)))
    return _some(questions, path)


def read_documents(folder: Path) -> list[Document]:
    """Every .txt and .md file below a folder is a document; tables hold one a row ({"text", "id"?, "title"?}). In the order of names."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of documents")
    documents = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TEXT_FORMATS and path.is_file():
            try:
                documents.append(Document(str(path.relative_to(folder)), path.read_text(encoding="utf-8")))
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
        elif format_of(path.name) not in (None, "json") and path.is_file():
            for row in read_source(Source(path=path.name, split="train", holds="documents"), path.parent, Counter()):
                if isinstance(row, Refusal):
                    raise UserError(str(row))
                assert isinstance(row.record, Document)
                documents.append(_named(row.record, row.fallback_id, str(path.relative_to(folder))))
    if not documents:
        raise UserError(f"{folder}: holds no .txt, no .md and no table (.jsonl, .csv, .parquet)")
    return _apart(documents)


def _named(document: Document, fallback_id: str, place: str) -> Document:
    """Rows without an id are named after the file's place below the folder: two files of one name are two files."""
    return replace(document, id=place + fallback_id[fallback_id.index(":") :]) if document.id == fallback_id else document


def _apart(documents: list[Document]) -> list[Document]:
    """Two files may use one id for two documents: the later one is numbered."""
    met: Counter[str] = Counter()
    taken = {document.id for document in documents}
    found = []
    for document in documents:
        id = document.id
        while met[document.id] and id in taken:
            met[document.id] += 1
            id = f"{document.id} ({met[document.id]})"
        met[document.id] = met[document.id] or 1
        taken.add(id)
        found.append(document if id == document.id else replace(document, id=id))
    return found


def _some(questions: list[Question], path: Path) -> list[Question]:
    if not questions:
        raise UserError(f"{path}: holds no question")
    twice = [id for id, count in Counter(q.id for q in questions).items() if count > 1]
    if twice:
        raise UserError(f"{path}: two questions have the id {twice[0]}")
    return questions

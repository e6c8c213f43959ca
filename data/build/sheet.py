"""samples.html: a sheet for a person to look through before anything is trained. One file, no script; all text is escaped."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.build.making.account import LEFT_OUT
from data.build.making.questions import ORDER, Made
from data.build.making.reading import Reading
from data.records import Document

SHEET = "samples.html"
_DOCUMENTS = 12
"""Of each split."""
_REFUSED = 5
"""Of each reason."""


def write_sheet(out: Path, title: str, reading: Reading, made: Made, account: Mapping[str, Any], seed: int) -> None:
    """Some documents of each split, each beside its questions, and some of what was left out, by reason."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for split in ORDER:
        asked: dict[str, list[dict[str, Any]]] = {}
        for row in made.rows[split]:
            asked.setdefault(row["doc_id"], []).append(row)
        for doc_id in random.Random(seed).sample(sorted(asked), min(_DOCUMENTS, len(asked))):
            chosen[doc_id] = asked[doc_id]
    documents = {document.id: document for document in reading.documents() if document.id in chosen}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("sheet.html.jinja").render(
        title=title,
        statistics=reading.statistics(),
        account=account,
        splits={split: _shown(split, made, chosen, documents) for split in ORDER},
        totals={split: len(made.rows[split]) for split in ORDER},
        refused=_refused(out),
    )
    (out / SHEET).write_text(text, encoding="utf-8")


def _shown(
    split: Any, made: Made, chosen: dict[str, list[dict[str, Any]]], documents: dict[str, Document]
) -> list[tuple[Document, list[dict[str, Any]]]]:
    mine = {row["doc_id"] for row in made.rows[split]}
    return [(documents[doc_id], rows) for doc_id, rows in chosen.items() if doc_id in mine]


def _refused(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The first few of each reason, questions and answers before files."""
    found: dict[str, list[dict[str, Any]]] = {}
    with (out / LEFT_OUT).open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            cases = found.setdefault(f"{row['what']}: {row['reason']}", [])
            if len(cases) < _REFUSED:
                cases.append(row)
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith(("questions", "answers")), item[0])))

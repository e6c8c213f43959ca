"""What a text is about: what it says itself, and never a file's name, a program's, or a line that merely comes first."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.build.asking.prompts import UNTITLED, Asked, load_prompts
from data.build.confined import Confined
from data.build.documents.titles import front_matter, markdown_title, text_title, title_of
from data.build.making.filters import Source, fault
from data.build.pages import Page, read_pages
from data.build.walk import find_files
from data.records import Document, Refusal
from tests.data.build.test_hostile import make_pdf

TEXT = "The crane at berth seven of Port Ebba lifts forty tonnes and was installed in 1998 by the firm Holt and Daughters."


def pages(folder: Path) -> dict[str, Page | Refusal]:
    with Confined() as confined:
        found = [
            page
            for one in find_files(folder, [], [])
            for page in ([one] if isinstance(one, Refusal) else read_pages(one, folder, confined, {}))
        ]
    return {page.where if isinstance(page, Refusal) else page.name: page for page in found}


@pytest.mark.parametrize(
    ("text", "title", "declared"),
    [
        ("Ferry rules  of\nPort Ebba", "Ferry rules of Port Ebba", "Ferry rules of Port Ebba"),
        ("report_final_v2.pdf", None, None),
        ("Microsoft Word - Ferry rules.docx", None, None),
        ("Microsoft Word - Ferry rules", "Ferry rules", "Ferry rules"),
        ("PowerPoint Presentation", None, "PowerPoint Presentation"),
        ("Untitled Document", None, "Untitled Document"),
        ("Chapter 3", None, "Chapter 3"),
        ("LaTeX with hyperref", None, "LaTeX with hyperref"),
        ("Insert title here", None, "Insert title here"),
        ("Vite + React + TS", None, "Vite + React + TS"),
        ("New Page 1", None, "New Page 1"),
        ("New Zealand", "New Zealand", "New Zealand"),
        ("Web of lies", "Web of lies", "Web of lies"),
        ("Home", None, "Home"),
        ("300", None, "300"),  # a film, where a column says so
        ("Node.js", "Node.js", "Node.js"),
        ("The Page Turner", "The Page Turner", "The Page Turner"),
        ("Unbenanntes Dokument", None, "Unbenanntes Dokument"),
        ("无标题文档 2", None, "无标题文档 2"),
        ("第3章", None, "第3章"),
        ("第三の男", "第三の男", "第三の男"),
        ("Без названия", None, "Без названия"),
        ("Chapter IV", None, "Chapter IV"),
        ("1. Introduction", None, "1. Introduction"),
        ("2. The crane", "2. The crane", "2. The crane"),
        ("Kapitel der Kräne", "Kapitel der Kräne", "Kapitel der Kräne"),
        ("IMG_2034", None, None),
        ("https://example.org/a", None, None),
        ("{{ page.title }}", None, None),
        ("C{3}", "C{3}", "C{3}"),
        ("", None, None),
        (None, None, None),
        ("word " * 40, ("word " * 24).strip(), ("word " * 24).strip()),
    ],
)
def test_what_is_a_title(text: str | None, title: str | None, declared: str | None) -> None:
    assert (title_of(text), title_of(text, declared=True)) == (title, declared)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Ferry\n\ntext", "Ferry"),
        ("```bash\n# install it\n```\n\ntext", None),  # a comment of a program
        ("<!-- # hidden -->\ntext", None),
        ("text\n\n# [Ferry](x.md) **rules** {#id}\n", "Ferry rules"),
        ("Ferry rules\n===========\n\ntext", "Ferry rules"),
        ("a paragraph\nof two lines\n---\n\ntext", None),
        ("## Ferry\n\ntext", "Ferry"),
        ("## Where from\n\ntext\n\n## Where to\n\ntext", None),  # sections
        ("# README.md\n\n# Pump", "Pump"),
        ("## Badges\n\n# Pump", "Pump"),
    ],
)
def test_headings_of_markdown(text: str, title: str | None) -> None:
    assert markdown_title(text) == title


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Ferry rules\n\n" + TEXT, "Ferry rules"),
        ("Ferry rules\n-----------\n" + TEXT, "Ferry rules"),
        ("Ferry rules\n" + TEXT * 2, "Ferry rules"),
        ("港口的灯塔\n\n灯塔建于1911年。", "港口的灯塔"),
        ("The lighthouse of Port Ebba was built in\n1911 and is thirty metres high.", None),  # a line that was wrapped
        ("The lighthouse was built in 1911.\n\nIt is high.", None),
        ("灯塔建于1911年。\n\n很高。", None),
        ("#!/bin/sh\n\necho", None),
        ("import os\n\nprint(os)", None),
        ("corpus.txt\n\n" + TEXT, None),
        ("2024-05-01 12:00:01 INFO started\n\n" + TEXT, None),
        ("From: Orla Quist\n\n" + TEXT, None),
        ("int main() {\n\n}", None),
        ("Dear Sir,\n\n" + TEXT, None),
        (TEXT, None),
        ("Only one line", None),
    ],
)
def test_headings_of_plain_text(text: str, title: str | None) -> None:
    assert text_title(text) == title


@pytest.mark.parametrize(
    ("text", "title", "rest"),
    [
        ("---\ntitle: Of A\nseo:\n  title: Buy now\n---\nx", "Of A", "x"),
        ("---\ntitle: >-\n  Of\n  A\n---\nx", "Of A", "x"),
        ("---\nTitle: 'It''s A'\n...\nx", "It's A", "x"),
        ('+++\ntitle = "Of A"\n+++\nx', "Of A", "x"),
        ("---\ntitle: 2024-05-01\n---\nx", "2024-05-01", "x"),
        ("---\ntitle:\n---\nx", None, "x"),
        ("---\nseo:\n  title: Buy now\n---\nx", None, "x"),
        ("---\ntitle: a: b: c\n---\nx", None, "---\ntitle: a: b: c\n---\nx"),  # no YAML: it stays text
        ("---\nA line between rules\n---\nx", None, "---\nA line between rules\n---\nx"),
        ("---\na: &a [x]\nb: [*a, *a]\n---\nx", None, "x"),
    ],
)
def test_front_matter(text: str, title: str | None, rest: str) -> None:
    about, left = front_matter(text)
    assert (about.get("title"), left) == (title, rest)


def test_no_file_s_name_is_a_subject(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(TEXT)
    (tmp_path / "notes.md").write_text(TEXT)
    (tmp_path / "page.html").write_text(f"<title>Untitled Document</title><p>{TEXT}</p>")
    (tmp_path / "named.html").write_text(f"<title>index.html</title><h1>Cranes</h1><p>{TEXT}</p>")
    (tmp_path / "scan.pdf").write_bytes(make_pdf(TEXT))
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    (tmp_path / "files.csv").write_text(f'name,body\ncranes.txt,"{TEXT}"\nCranes,"{TEXT}"\n')
    (tmp_path / "tool.py").write_text(f"# {TEXT}\n")
    found = pages(tmp_path)
    assert {name: page.title for name, page in found.items() if isinstance(page, Page)} == {
        "notes.txt": None, "notes.md": None, "page.html": None, "named.html": "Cranes", "scan.pdf": None, "corpus.jsonl:1": None,
        "files.csv:2": None, "files.csv:3": "Cranes", "tool.py": None,
    }  # fmt: skip
    assert all("corpus" not in page.text and "cranes.txt" not in page.text for page in found.values() if isinstance(page, Page))


def test_a_document_without_a_title_asks_for_none() -> None:
    """The generator is told so, and no question goes because it does not name a file; with a title it does."""
    asked = Asked(question="Who installed the crane of berth seven?", answer="Holt and Daughters", level="remember")
    untitled, titled = Document("corpus.jsonl:1#x", TEXT), Document("corpus.jsonl:1#x", TEXT, "Ferry rules")
    assert fault(asked, Source.of(untitled)) is None
    assert fault(asked, Source.of(titled)) == ("does not name its subject", asked.question)
    for name in ("pit", "perpetual"):
        said = load_prompts(name).train.messages(untitled, {})[1]["content"]
        assert UNTITLED in said and "corpus" not in said
    code = Document("a/b.py#x", TEXT, meta={"page": "a/b.py", "format": "code"})
    assert "a/b.py" in load_prompts("pit").train.messages(code, {})[1]["content"]


# --- columns --------------------------------------------------------------------------------------------------------


def test_columns_come_from_all_rows(tmp_path: Path) -> None:
    rows = [{"body": TEXT}, {"body": TEXT + "2", "headline": "Cranes", "published": "2024-05-01"}, {"text": "stray"}, {"body": TEXT + "3"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.csv").write_text(f'Text;Body;Title\n;"{TEXT} b";Of B\n;"{TEXT} c";\n')
    pq.write_table(pa.table({"text": pa.array([None, None], pa.string()), "content": [TEXT, TEXT + "d"]}), tmp_path / "c.parquet")
    found = pages(tmp_path)
    titles = {name: page.title if isinstance(page, Page) else page.reason for name, page in found.items()}
    assert titles == {
        "a.jsonl:1": None,
        "a.jsonl:2": "Cranes",
        "a.jsonl:3": "text (column body) is missing",  # that row's fault
        "a.jsonl:4": None,
        "b.csv:2": "Of B",
        "b.csv:3": None,
        "c.parquet:row group 0, row 1": None,
        "c.parquet:row group 0, row 2": None,
    }
    assert found["a.jsonl:2"].date == "2024-05-01"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('<h1 align="center">Port Ebba</h1>\n\nwords', "Port Ebba"),
        ("# ![logo](a.png) Port Ebba [![build](b.svg)](c)\n\nwords", "Port Ebba"),
        ("# Port Ebba[^1]\n\nwords", "Port Ebba"),
        ("# Q \\& A &amp; more\n\nwords", "Q & A & more"),
        ("`<h1>none</h1>` in a sentence\n\nwords", None),
    ],
)
def test_headings_as_people_write_them(text: str, title: str | None) -> None:
    assert markdown_title(text) == title

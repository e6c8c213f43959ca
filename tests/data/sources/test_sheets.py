"""Workbooks as people have them: rows with the program's own numbers, one sheet or the one that is named, and what is said of broken ones."""

import datetime
import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from data.config import Source
from data.ground.formats import format_of
from data.readers import read_source
from data.records import Refusal
from data.sources.raw_rows import Row
from tests.data.build import office_files as office
from tests.data.sources.reading import place, read, records, refusals

HEAD = ["question", " answer ", None, "doc_id"]
ROWS = [
    [], HEAD, ["Who?", "Ada"], ["When?", 1998, None, 7], ["Which day?", datetime.datetime(2020, 1, 2)], [None, None], ["How?", "#N/A"],
    ["Why?", None], ["Where?", "Lund", "", "d", "beyond"], ["Names?", "x", None, 2.0],
]  # fmt: skip
SHEET = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">{}</worksheet>'
CELL = '<c r="{}" t="inlineStr"><is><t>{}</t></is></c>'


def workbook(folder: Path, content: bytes, **settings: Any) -> list[Row | Refusal]:
    (folder / "book.xlsx").write_bytes(content)
    return list(read_source(Source(path="book.xlsx", split="train", holds="questions", **settings), folder, Counter()))


def edited(sheet: str) -> bytes:
    """A workbook whose only sheet is this XML."""
    with zipfile.ZipFile(io.BytesIO(office.xlsx({"A": [["question"]]}))) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    return office.zipped({**parts, "xl/worksheets/sheet1.xml": sheet})


def test_rows_and_their_places(tmp_path: Path) -> None:
    rows = workbook(tmp_path, office.xlsx({"Sheet1": ROWS, "Sheet2": []}))
    assert [record.answers for record in records(rows)] == [("Ada",), ("x",)]
    assert records(rows)[1].doc_id == "2"  # as Excel stores every number
    assert [(place(one), one.reason) for one in refusals(rows)] == [
        ("book.xlsx:4", "answer is a number, not text"),
        ("book.xlsx:5", "answer is a date, not text"),
        ("book.xlsx:7", "a cell is #N/A: its formula came to nothing; mend it, or write the value"),
        ("book.xlsx:8", "answer is empty"),
        ("book.xlsx:9", "5 cells where the header has 4"),
    ]
    as_text = workbook(tmp_path, office.xlsx({"Sheet1": ROWS}), numbers="text")
    assert [record.answers for record in records(as_text)] == [("Ada",), ("1998",), ("2020-01-02",), ("x",)]


def test_lists_and_choices(tmp_path: Path) -> None:
    [one] = records(read(tmp_path, office.xlsx({"A": [["question", "answers"], ["q", "['a', 'b']"]]}), "questions", "xlsx"))
    assert one.answers == ("a", "b")
    sheet = office.xlsx({"A": [["question", "choices", "answer"], ["q", '["x", "y"]', "B"]]})
    [choice] = records(read(tmp_path, sheet, "choices", "xlsx"))
    assert (choice.choices, choice.answer_index) == (("x", "y"), 1)


def test_which_sheet(tmp_path: Path) -> None:
    two = office.xlsx({name: [["question", "answer"], [name, "a"]] for name in ("Old", "New", "Draft")}, hidden=("Draft",))
    [told] = refusals(workbook(tmp_path, two))
    assert told.reason == "2 sheets have rows (Old, New); name one with configuration: Old" and told.ends_source
    [row] = workbook(tmp_path, two, configuration="New")
    assert isinstance(row, Row) and row.record.question == "New" and row.fallback_id == "book.xlsx:New!2"  # type: ignore[union-attr]
    [told] = refusals(workbook(tmp_path, two, configuration="Newer"))
    assert told.reason == "no sheet 'Newer' with rows in it (sheets: Old, New)"
    assert workbook(tmp_path, office.xlsx({"A": [], "B": []})) == []


BOMB = bytearray(office.zipped({"xl/workbook.xml": b"0"}))
BOMB[BOMB.index(b"PK\x01\x02") + 24 : BOMB.index(b"PK\x01\x02") + 28] = (300 << 20).to_bytes(4, "little")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"PK\x03\x04", "no whole zip archive (cut off, or another kind of file)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "encrypted, or of an old kind under a new name; save it anew without a password"),
        (bytes(BOMB), "unpacks to more than 256 MB or 20,000 parts (a zip bomb?)"),
        (office.docx(""), "not a readable workbook ("),
        (office.xlsx({"A": [["question"]]})[:-300], "no whole zip archive"),
        (edited("<worksheet"), "not a readable workbook ("),
        (edited("<!DOCTYPE x [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]>" + SHEET.format("<sheetData>&b;</sheetData>")), "not a readable workbook ("),
        (edited(SHEET.format(f'<sheetData><row r="1">{CELL.format("A1", "question")}</row><row r="99999999"/></sheetData>')), "has more than 1,048,576 rows"),
        (office.xlsx({"A": [["frage", "antwort"], ["q", "a"]]}), "no column 'question' (columns: frage, antwort)"),
    ],
    ids=range(9),
)  # fmt: skip
def test_broken_ones(tmp_path: Path, content: bytes, reason: str) -> None:
    [told] = refusals(workbook(tmp_path, content))
    assert told.reason.startswith(reason) and told.ends_source, told


def test_a_size_that_is_not_so_is_not_believed(tmp_path: Path) -> None:
    head, row = (
        f'<row r="{n}">{CELL.format(f"A{n}", a)}{CELL.format(f"B{n}", b)}</row>' for n, a, b in ((1, "question", "answer"), (3, "q", "a"))
    )
    for size in ("A1:A1", "A1:XFD1048576"):
        [one] = records(workbook(tmp_path, edited(SHEET.format(f'<dimension ref="{size}"/><sheetData>{head}{row}</sheetData>'))))
        assert one.answers == ("a",)


def test_a_cell_merged_over_rows_stands_in_each(tmp_path: Path) -> None:
    """Else the questions of a document would lose it, silently."""
    book = Workbook()
    for row in (
        ["doc_id", "question", "answer"],
        ["d1", "q1", "a"],
        [None, "q2", "a"],
        [None, None, None],
        [None, "q3", "a"],
        [None, "q4", "a"],
    ):
        book.active.append(row)
    book.active.merge_cells("A2:A5")
    sink = io.BytesIO()
    book.save(sink)
    assert [(record.question, record.doc_id) for record in records(workbook(tmp_path, sink.getvalue()))] == [
        ("q1", "d1"), ("q2", "d1"), ("q3", "d1"), ("q4", None),
    ]  # fmt: skip


def test_endings() -> None:
    assert [format_of(name) for name in ("a.xlsx", "A.XLSM", "a.xlsx.gz", "a.xls")] == ["xlsx", "xlsx", None, None]

"""One table in every coat: endings, packings, encodings, separators, headers."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from console import UserError
from data.config import Source
from data.ground.formats import format_of
from data.records import Refusal
from data.sources.raw_rows import Raw
from data.sources.tables import arrow_rows
from tests.data.sources.reading import packed, records, refusals
from tests.data.sources.test_spelling import told


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"), ("a.NDJSON", "jsonl"), ("a.json", "json"), ("a.csv", "csv"), ("a.tsv.gz", "csv"), ("a.b.parquet", "parquet"),
        ("a.jsonl.gz", "jsonl"), ("a.parquet.gz", None), ("a.txt.gz", None), ("a", None), ("csv", None), ("a.gz", None),
    ],
)  # fmt: skip
def test_the_format_is_the_ending(name: str, format: str | None) -> None:
    assert format_of(name) == format
    assert Source(path=name, split="train", holds="documents").format == (format or "jsonl")
    assert Source(path=name, split="train", holds="documents", format="csv").format == "csv"


GOOD = [("q1", "a, b"), ("q2", "c; d")]


CSV = 'question{0}answer\nq1{0}"a, b"\nq2{0}"c; d"\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV.format(",")),
        ("a.csv", CSV.format(";")),
        ("a.csv", CSV.format("\t")),
        ("a.csv", CSV.format("|")),
        ("a.csv", "sep=;\r\n" + CSV.format(";")),
        ("a.csv", ("\ufeff" + CSV.format(";")).encode()),
        ("a.csv", CSV.format("\t").encode("utf-16")),  # Excel's "Unicode text"
        ("a.tsv", CSV.format("\t")),
        ("a.csv.gz", packed(CSV.format(";").encode())),
        ("a.jsonl.gz", packed(b"".join(json.dumps({"question": q, "answer": a}).encode() + b"\n" for q, a in GOOD))),
        ("a.json", json.dumps([{"question": q, "answer": a} for q, a in GOOD], indent=1)),
        ("a.json", "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in GOOD)),
        ("a.json.gz", packed(json.dumps([{"question": q, "answer": a} for q, a in GOOD]).encode())),
        ("a.ndjson", "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in GOOD)),
    ],
)
def test_one_table_in_every_coat(name: str, content: str | bytes, tmp_path: Path) -> None:
    rows = told(tmp_path, content, name)
    assert [(record.question, record.answers[0]) for record in records(rows)] == GOOD and not refusals(rows)


def test_headers_as_people_write_them(tmp_path: Path) -> None:
    rows = told(tmp_path, "question , answer,,\nWho?,Ada,,\n", "a.csv")  # spaces, and a spreadsheet's empty columns
    assert [record.answers for record in records(rows)] == [("Ada",)]
    rows = told(tmp_path, "question,answer,answer\nWho?,Ada,Eva\n", "b.csv")
    assert refusals(rows)[0].reason == "duplicate column 'answer'"  # the twin


def test_the_separator_is_what_yields_the_columns(tmp_path: Path) -> None:
    [row] = records(told(tmp_path, "question,answer;note\nq,a\n", "a.csv", columns={"answer": "answer;note"}))
    assert row.answers == ("a",)
    rows = told(tmp_path, "text\none; two\n", "b.csv", "documents")
    assert [record.text for record in records(rows)] == ["one; two"]
    rows = told(tmp_path, "question;answer\nq;a;b\n", "c.csv")
    assert refusals(rows)[0].reason == "3 fields where the header has 2"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl.gz", packed(b'{"question": "q", "answer": "a"}\n' * 999)[:-20], "cannot be unpacked: Compressed file ended"),
        ("a.jsonl.gz", b"no gzip at all", "cannot be unpacked: Not a gzipped file"),
        ("a.json.gz", packed(b"[]")[:-9] + b"123456789", "cannot be unpacked: "),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", "cannot be unpacked: "),
        ("a.csv", b"\xff\xfeq\x00u\x00\x00\xd8x\x00", "begins as UTF-16 and is none: "),
        ("a.json", '{\n "data": []\n}', "one object over several lines; expected one list of objects"),
        ("a.json", "[{]", "malformed JSON"),
    ],
)
def test_damaged_tables(name: str, content: str | bytes, reason: str, tmp_path: Path) -> None:
    *_, last = told(tmp_path, content, name)
    assert isinstance(last, Refusal) and last.reason.startswith(reason) and last.ends_source, last


def test_columns_that_became_json_are_values_again() -> None:
    """`datasets` makes JSON source of a column with texts and numbers; as text it would train `"one"` with its quotation marks."""
    mixed = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"one"', "5", "null", "{"]))
    inside = pa.ListArray.from_arrays([0, 2, 2, 2, 2], pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"x"', "3"])))
    rows = list(arrow_rows(pa.table({"text": mixed, "answers": inside})))
    assert [row.values for row in rows if isinstance(row, Raw)] == [
        {"text": "one", "answers": ["x", 3]}, {"text": 5, "answers": []}, {"text": None, "answers": []},
    ]  # fmt: skip
    assert not isinstance(rows[3], Raw) and rows[3].reason.startswith("text: malformed JSON")


@pytest.mark.parametrize(
    ("ending", "remedy"),
    [(".jsonl.zst", "unpack it"), (".csv.zip", "unpack it"), (".xls", "save it as .xlsx"), (".feather", "save it as .parquet")],
)
def test_endings_that_no_reader_knows(ending: str, remedy: str, tmp_path: Path) -> None:
    """Not "malformed JSON; was the file cut off?"."""
    with pytest.raises(UserError, match=f"a{ending}: no reader for .*; {remedy}"):
        told(tmp_path, b"\x28\xb5\x2f\xfd", f"a{ending}")
    assert records(told(tmp_path, '{"question": "q", "answer": "a"}\n', "a.unknown")), "the twin: an ending that says nothing is JSON lines"

"""CSV and Parquet: every bad input is a refusal with place and reason, never a crash, never a silent loss."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.sources import tables
from data.sources.raw_rows import Row
from tests.data.sources.reading import place, read, records, refusals, write_parquet


@pytest.mark.parametrize(
    "content, where, reason, ends",
    [
        (b"id,text\n1,one\n2\n3,three\n", "x:3", "1 fields where the header has 2", False),
        (b"id,text\n1,one\n2,a,b\n3,three\n", "x:3", "3 fields where the header has 2", False),
        (b"id,text\n1,one\n2,\n3,three\n", "x:3", "text is empty", False),
        (b"id,text\n1,one\n2,caf\xe9\n3,three\n", "x:3", "not UTF-8", False),
        (b'id,text\n1,"one\ntwo"\n2,"a"b\n3,three\n', "x:4", "malformed CSV: ',' expected after '\"'", False),
        (b'id,text\n1,one\n2,"never closed\n3,three\n', "x:3", "a quote opened here is never closed", True),
        (b"id,id\n1,one\n", "x:1", "duplicate column 'id'", True),
        (b"\x80,body\n1,one\n", "x:1", "no column 'text' (columns: \\udc80, body)", True),
        (b"id,body\n1,one\n", "x:1", "no column 'text' (columns: id, body)", True),
    ],
)
def test_csv_refusals(tmp_path: Path, content: bytes, where: str, reason: str, ends: bool) -> None:
    rows = read(tmp_path, content, format="csv")
    [refusal] = refusals(rows)
    assert (place(refusal), refusal.reason, refusal.ends_source) == (where, reason, ends)
    if not ends:
        assert len(records(rows)) == 2


def test_csv_good(tmp_path: Path) -> None:
    content = '\ufeffkey,body,extra\r\n\r\n1,"one, ""two""\nthree",x\r\n'
    [record] = records(read(tmp_path, content, format="csv", id="key", text="body"))
    assert (record.id, record.text) == ("1", 'one, "two"\nthree')
    questions = 'question,answers\nq,plain\nq,"[""a"", ""b""]"\nq,[not json\n'
    assert [r.answers for r in records(read(tmp_path, questions, "questions", "csv"))] == [("plain",), ("a", "b"), ("[not json",)]


# --- Parquet --------------------------------------------------------------------------------------------------------


def test_parquet_good_and_bad_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p", {"key": [1, 2, 3, 4], "text": ["one", None, "", "four"], "unused": [b"\xff"] * 4}, row_group_size=3)
    rows = read(tmp_path, (tmp_path / "p").read_bytes(), format="parquet", id="key")
    assert [(r.id, r.text) for r in records(rows)] == [("1", "one"), ("4", "four")]
    assert [(place(r), r.reason) for r in refusals(rows)] == [
        ("x:row group 0, row 2", "text is null"),
        ("x:row group 0, row 3", "text is empty"),
    ]
    assert [row.fallback_id for row in rows if isinstance(row, Row)] == ["x:row group 0, row 1", "x:row group 1, row 1"]


def test_parquet_lists_and_dates(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p", {"question": ["q"], "answers": pa.array([["a", "b"]]), "level": [3.0]})
    [record] = records(read(tmp_path, (tmp_path / "p").read_bytes(), "questions", "parquet"))
    assert record.answers == ("a", "b")
    write_parquet(tmp_path / "p", {"text": pa.array(["t"]).dictionary_encode(), "date": pa.array([0], pa.date32())})
    [record] = records(read(tmp_path, (tmp_path / "p").read_bytes(), format="parquet"))
    assert (record.text, record.date) == ("t", "1970-01-01")


def test_parquet_invalid_utf8_and_wrong_type(tmp_path: Path) -> None:
    text = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    write_parquet(tmp_path / "p", {"text": text})
    rows = read(tmp_path, (tmp_path / "p").read_bytes(), format="parquet")
    assert [r.reason for r in refusals(rows)] == ["text is not UTF-8"] and len(records(rows)) == 1
    write_parquet(tmp_path / "p", {"text": [b"bytes"]})
    assert refusals(read(tmp_path, (tmp_path / "p").read_bytes(), format="parquet"))[0].reason == "text is bytes, not text"


def test_parquet_missing_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p", {"body": ["t"]})
    [refusal] = refusals(read(tmp_path, (tmp_path / "p").read_bytes(), format="parquet"))
    assert refusal.reason == "no column 'text' (columns: body)" and refusal.ends_source


def test_fake_and_truncated_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p", {"text": ["t" * 50] * 500}, compression="NONE", use_dictionary=False)
    whole = (tmp_path / "p").read_bytes()
    assert len(records(read(tmp_path, whole, format="parquet"))) == 500
    for content in (b"not parquet at all", b"PAR1" + b"x" * 100 + b"PAR1", whole[:-10], whole[:1000]):
        [refusal] = refusals(read(tmp_path, content, format="parquet"))
        assert "not a readable Parquet file" in refusal.reason and refusal.ends_source


def test_parquet_extension_types_are_refused_before_they_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pickled(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.string(), "tests.pickled_object")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"payload"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> "Pickled":
            raise AssertionError("the file's type was loaded")

    storage = pa.array(["t"])
    write_parquet(tmp_path / "p", {"text": storage, "other": pa.ExtensionArray.from_storage(Pickled(), storage)})
    pa.register_extension_type(Pickled())
    try:
        [refusal] = refusals(read(tmp_path, (tmp_path / "p").read_bytes(), format="parquet"))
        assert "extension type" in refusal.reason and refusal.ends_source
        # twin: without the check the type is loaded
        monkeypatch.setattr(tables, "parquet_has_extension_types", lambda path: False)
        with pytest.raises(AssertionError, match="was loaded"):
            read(tmp_path, (tmp_path / "p").read_bytes(), format="parquet")
    finally:
        pa.unregister_extension_type("tests.pickled_object")

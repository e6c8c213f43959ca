"""Every bad input through every reader it applies to: a refusal with place and reason, never a crash, never a silent loss."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console import UserError
from data import strict_json, tables
from data.config import Source
from data.readers import read_source
from data.records import ChoiceQuestion, Document, Question, Refusal
from data.validate import Row, excerpt

FUZZ_EXAMPLES = int(os.environ.get("STUDYHALL_FUZZ", "100"))  # for each format
GOOD = '{"id": "a", "text": "one"}'


def read(
    folder: Path, content: bytes | str, holds: str = "documents", format: str = "jsonl", name: str = "x", **columns: str
) -> list[Row | Refusal]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = Source(path=name, split="train", holds=holds, format=format, columns=columns)  # type: ignore[arg-type]
    return list(read_source(source, folder, Counter()))


def refusals(rows: list[Row | Refusal]) -> list[Refusal]:
    return [row for row in rows if isinstance(row, Refusal)]


def records(rows: list[Row | Refusal]) -> list[Any]:
    return [row.record for row in rows if isinstance(row, Row)]


def place(refusal: Refusal) -> str:
    return refusal.where.rsplit("/", 1)[-1]


# What JSON can get wrong inside a row; %s is the row's text field.
BAD_DOCUMENTS = [
    ('{"id": "b", "text": null}', "text is null"),
    ('{"id": "b"}', "text is missing"),
    ('{"id": "b", "text": ""}', "text is empty"),
    ('{"id": "b", "text": " \\n "}', "text is empty"),
    ('{"id": "b", "text": 7}', "text is a number, not text"),
    ('{"id": "b", "text": ["x"]}', "text is a list, not text"),
    ('{"id": "b", "text": "x", "text": "y"}', "duplicate key 'text'"),
    ('{"id": "b", "text": "x", "more": {"k": 1, "k": 2}}', "duplicate key 'k'"),
    ('{"id": "b", "text": "x", "score": NaN}', "NaN is not a JSON number"),
    ('{"id": "b", "text": "x", "score": -Infinity}', "-Infinity is not a JSON number"),
    ('{"id": "b", "text": "x", "score": 1e999}', "a number too large to be held"),
    ('{"id": "b", "text": "x", "score": ' + "9" * 5000 + "}", "a number of more than 4300 digits"),
    ('{"id": "b", "text": "x \\ud83d y"}', "lone surrogate '\\ud83d'"),
    ('{"id": "b", "text": "x", "\\udc00": 1}', "lone surrogate '\\udc00'"),
    ('{"id": null, "text": "x"}', "id is null"),
    ('{"id": "", "text": "x"}', "id is empty"),
    ('{"id": true, "text": "x"}', "id is true or false, not text"),
    ('{"id": 1.5, "text": "x"}', "id is a number, not text"),
]


@pytest.mark.parametrize("row, reason", BAD_DOCUMENTS, ids=lambda value: value[:40])
def test_jsonl_refuses_the_row_and_goes_on(tmp_path: Path, row: str, reason: str) -> None:
    rows = read(tmp_path, f"{GOOD}\n{row}\n{GOOD}\n")
    assert len(rows) == 3 and len(records(rows)) == 2
    [refusal] = refusals(rows)
    assert place(refusal) == "x:2" and refusal.reason == reason
    assert not refusal.ends_source and len(refusal.excerpt) <= 60


@pytest.mark.parametrize("row, reason", BAD_DOCUMENTS, ids=lambda value: value[:40])
def test_interleaved_refuses_the_element_at_its_line(tmp_path: Path, row: str, reason: str) -> None:
    nested = '{"type": "doc", "document": ' + row + "}"
    good = '{"type": "doc", "document": "one"}'
    rows = read(tmp_path, f'[\n{good},\n{nested},\n{{"type": "qna", "question": "q", "answer": "a"}},\n{good}\n]', "both", "interleaved")
    assert len(rows) == 4 and len(records(rows)) == 2
    bad, orphan = refusals(rows)
    assert place(bad) == "x:3" and bad.reason == reason
    assert place(orphan) == "x:4" and "its document was refused" in orphan.reason


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"id": "b", "text" "x"}', "malformed JSON: Expecting ':' delimiter at column 20"),
        ('{"id": "b", "text": "x"} {}', "malformed JSON: something follows the value at column 26"),
        ("nonsense", "malformed JSON: Expecting value at column 1"),
        ("[" * 100_000, "JSON is nested too deep at column 1"),
        ("[1]", "a row must be an object {…}"),
        ('"text"', "a row must be an object {…}"),
        ('{"text": "a\tb"}', "malformed JSON: Invalid control character at at column 12"),
    ],
    ids=lambda value: value[:30],
)
def test_jsonl_malformed_lines(tmp_path: Path, line: str, reason: str) -> None:
    rows = read(tmp_path, f"{GOOD}\n{line}\n{GOOD}\n")
    [refusal] = refusals(rows)
    assert (place(refusal), refusal.reason) == ("x:2", reason)
    assert len(records(rows)) == 2
    assert str(refusal).startswith(f"{tmp_path}/x:2: {reason}")


def test_jsonl_truncated_last_line(tmp_path: Path) -> None:
    rows = read(tmp_path, f'{GOOD}\n{GOOD}\n{{"id": "c", "te')
    [refusal] = refusals(rows)
    assert (place(refusal) == "x:3" and "cut off" in refusal.reason) or "truncated" in refusal.reason
    assert not refusals(read(tmp_path, f"{GOOD}\n{GOOD}"))  # twin: whole, only without a newline at the end


def test_jsonl_bytes(tmp_path: Path) -> None:
    rows = read(
        tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\n" + b'{"text": "caf\xe9"}\n' + '{"text": "café 😀 \\ud83d\\ude00"}\n'.encode()
    )
    [refusal] = refusals(rows)
    assert (place(refusal), refusal.reason) == ("x:3", "not UTF-8 at byte 14")
    assert [record.text for record in records(rows)] == ["one", "café 😀 😀"]
    assert records(rows)[1].id == "x:4"


def test_a_bom_further_down_is_no_bom(tmp_path: Path) -> None:
    [refusal] = refusals(read(tmp_path, GOOD.encode() + b"\n\xef\xbb\xbf" + GOOD.encode()))
    assert "malformed JSON" in refusal.reason


def test_40_mb_row(tmp_path: Path) -> None:
    big = json.dumps({"text": "x" * (40 << 20)})
    rows = read(tmp_path, f"{GOOD}\n{big}\n{GOOD}\n")
    [refusal] = refusals(rows)
    assert (place(refusal), refusal.reason) == ("x:2", "longer than 32 MB") and len(records(rows)) == 2
    assert refusals(read(tmp_path, f"{GOOD}\n{big}"))[0].reason == "longer than 32 MB"
    rows = read(tmp_path, "text\none\n" + "x" * (40 << 20) + "\nthree\n", format="csv")
    assert [(place(r), r.reason) for r in refusals(rows)] == [("x:3", "longer than 32 MB")] and len(records(rows)) == 2


def test_a_row_of_the_limit_is_not_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MAX_ROW_BYTES", len(GOOD) + 1)
    assert len(records(read(tmp_path, f"{GOOD}\n{GOOD}\n"))) == 2
    monkeypatch.setattr(strict_json, "MAX_ROW_BYTES", len(GOOD))
    assert len(refusals(read(tmp_path, f"{GOOD}\n{GOOD}\n"))) == 2


@pytest.mark.parametrize("format", ["jsonl", "csv", "interleaved", "choices", "wiki_pages"])
def test_empty_file_is_noted(tmp_path: Path, format: str) -> None:
    (tmp_path / "x").touch()
    holds = {"interleaved": "both", "wiki_pages": "both", "choices": "choices"}.get(format, "documents")
    notes: Counter[str] = Counter()
    assert list(read_source(Source(path="x", split="train", holds=holds, format=format), tmp_path, notes)) == []  # type: ignore[arg-type]
    assert notes == {"empty file": 1}


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ('{"a": 1}', 1, "expected one list of objects"),
        ('[\n{"type": "doc", "document": "one"},\n{"type": doc}\n]', 3, "malformed JSON: Expecting value"),
        ('[\n{"type": "doc", "document": "one"},\n', 3, "malformed JSON: Expecting value"),
        ('[\n{"type": "doc", "document": "one"}\n', 3, "truncated"),
        ('[\n{"type": "doc", "document": "one"}\n{}]', 3, "expected , or ]"),
        ('[\n{"type": "doc", "document": "one"},\n]', 3, "malformed JSON"),
        ('[\n{"type": "doc", "document": "one"}]\n more', 3, "something follows the list"),
        ("[\n" + "[" * 100_000, 2, "nested too deep"),
        ('\n[{"type": "doc", "document": "one\n"}]', 2, "Invalid control character"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("format, holds", [("interleaved", "both"), ("wiki_pages", "both"), ("choices", "choices")])
def test_a_broken_list_ends_the_source(tmp_path: Path, text: str, line: int, reason: str, format: str, holds: str) -> None:
    last = refusals(read(tmp_path, text, holds, format))[-1]
    assert place(last) == f"x:{line}" and reason in last.reason and last.ends_source


def test_invalid_utf8_in_a_list_names_the_line(tmp_path: Path) -> None:
    [refusal] = refusals(read(tmp_path, b'[\n{"type": "doc",\n "document": "caf\xe9"}]', "both", "interleaved"))
    assert (place(refusal), refusal.reason, refusal.ends_source) == ("x:3", "not UTF-8", True)


def test_interleaved_links_and_titles(tmp_path: Path) -> None:
    elements = [
        {"type": "qna", "question": "before?", "answer": "yes"},
        {"type": "doc", "id": 7, "document": {"title": "T", "description": "D"}},
        {"type": "qna", "question": "q1", "answers": ["a", "b"]},
        {"type": "note"},
        {"type": "qna", "question": "lost?", "answer": "yes"},
        {"type": "doc", "document": {"title": "only"}},
        {"type": "doc", "document": {"description": 3}},
        "text",
    ]
    rows = read(tmp_path, json.dumps(elements, indent=0), "both", "interleaved")
    assert len(rows) == len(elements)
    before, document, question, only = records(rows)
    assert before.doc_id is None and document == Document("7", "T\nD", "T") and question == Question("", "q1", ("a", "b"), "7")
    assert only.text == "only"
    assert ["expected" in r.reason or "was refused" in r.reason or "not text" in r.reason for r in refusals(rows)] == [True] * 4


def test_wiki_pages(tmp_path: Path) -> None:
    pages = [
        {
            "evidence_text": "<Ann (b. <1990>) - Wikipedia 12_3_4> Ann is.",
            "qa_pairs": [{"text": "Who?", "output": "Ann"}, {"text": None}, 3],
            "id": "12_3_4",
        },
        {"evidence_text": "<Bob - Wikipedia 5> ", "qa_pairs": [{"text": "Who?", "output": "Bob"}]},
        {"evidence_text": "no header", "qa_pairs": {}},
        [],
    ]
    rows = read(tmp_path, json.dumps(pages), "both", "wiki_pages")
    assert len(rows) == 3 + 1 + 2 + 2 + 1
    ann, question, bare = records(rows)
    assert (ann.id, ann.title, ann.text) == ("12_3_4", "Ann (b. <1990>)", "Ann is.")
    assert question.doc_id == "12_3_4" and bare.id == "x:1#3"
    reasons = [refusal.reason for refusal in refusals(rows)]
    assert reasons[:2] == ["qa_pairs[1]: question is null", "qa_pairs[2]: expected an object {text, output}"]
    assert reasons[2] == "text is empty" and "its document was refused" in reasons[3]
    assert reasons[4:] == ["qa_pairs is not a list", "a page must be an object {…}"]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"answer": "E"}, "answer is not a letter from A to D"),
        ({"answer": "b"}, "answer is not a letter from A to D"),
        ({"answer": 1}, "answer is a number, not text"),
        ({"answer": None}, "answer is null"),
        ({"choices": "A) x"}, "choices is text, not a list"),
        ({"choices": []}, "choices is an empty list"),
        ({"choices": ["x"]}, "choices has fewer than two entries"),
        ({"choices": ["x", None]}, "choices[1] is null, not text"),
        ({"choices": ["A) x", "B) x", "C) y", "D) z"]}, "choices has two equal entries"),
        ({"question": ""}, "question is empty"),
    ],
)
def test_choices(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    good: dict[str, Any] = {"question": "q", "choices": ["A) w", "B) x", "C) y", "D) z"], "answer": "B"}
    rows = read(tmp_path, json.dumps([good, good | change]), "choices", "choices")
    assert records(rows) == [ChoiceQuestion("", "q", ("w", "x", "y", "z"), 1)]
    assert [r.reason for r in refusals(rows)] == [reason]


def test_choices_keep_letters_that_are_not_theirs(tmp_path: Path) -> None:
    [record] = records(read(tmp_path, json.dumps([{"question": "q", "choices": ["A) w", "C) x"], "answer": "A"}]), "choices", "choices"))
    assert record.choices == ("A) w", "C) x")
    [record] = records(read(tmp_path, json.dumps({"question": "q", "choices": ["w", "x"], "answer_index": 1}), "choices"))
    assert record.answer_index == 1


# --- questions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"question": "q"}, "answer is missing"),
        ({"question": "q", "answer": None}, "answer is null"),
        ({"question": "q", "answers": []}, "answers is an empty list"),
        ({"question": "q", "answers": ["a", ""]}, "answers[1] is empty"),
        ({"question": "q", "answer": 5}, "answer is a number, not text"),
        ({"question": "q", "answer": {"text": "a"}}, "answer is an object, not text"),
        ({"answer": "a"}, "question is missing"),
        ({"question": "q", "answer": "a", "doc_id": [1]}, "doc_id is a list, not text"),
    ],
)
def test_bad_questions(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    [refusal] = refusals(read(tmp_path, json.dumps(row), "questions"))
    assert refusal.reason == reason


def test_good_questions(tmp_path: Path) -> None:
    lines = [
        {"wiki_id": 3, "question": " q ", "answer": "a "},
        {"wiki_id": None, "question": "q", "answers": ["a", "b", "a"], "level": 2},
        {"wiki_id": "x", "question": "q", "answer": "a", "answers": ["b"], "domain": {"odd": 1}},
    ]
    rows = read(tmp_path, "\n".join(map(json.dumps, lines)), "questions", doc_id="wiki_id")
    assert records(rows) == [
        Question("", "q", ("a",), "3"),
        Question("", "q", ("a", "b"), None, level="2"),
        Question("", "q", ("a", "b"), "x"),
    ]


# --- CSV ------------------------------------------------------------------------------------------------------------


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


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, **options)


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


# --- sources that are themselves at fault ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../secret.jsonl", "sub/../../secret.jsonl", "link.jsonl", "linked/secret.jsonl", "/etc/hostname"])
def test_leaving_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.jsonl").write_text(GOOD)
    (root / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "linked").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out of data.root"):
        list(read_source(Source(path=path, split="train", holds="documents"), root, Counter()))


def test_links_and_dots_inside_the_root_are_fine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    for path in ("link.jsonl", "sub/../a.jsonl"):
        assert len(list(read_source(Source(path=path, split="train", holds="documents"), tmp_path, Counter()))) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "missing"}, "cannot be read: No such file"),
        ({"path": "sub"}, "not a regular file"),
        ({"path": "fifo"}, "not a regular file"),
        ({"path": "loop"}, "no usable path|cannot be read"),
        ({"path": "a\0b"}, "no usable path"),
        ({"holds": "both"}, "holds: both needs format"),
        ({"format": "choices"}, "format choices cannot hold documents"),
        ({"format": "wiki_pages", "holds": "choices"}, "cannot hold choices"),
        ({"columns": {"idd": "x"}}, "idd is no field of documents; did you mean id"),
        ({"format": "interleaved", "columns": {"id": "x"}}, "fixed names"),
        ({"format": "huggingface", "path": "/etc"}, "leads out|neither"),
        ({"format": "huggingface", "path": "../x/y"}, "neither|leads out"),
    ],
)
def test_sources_at_fault(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    source = Source.model_validate({"path": "x", "split": "train", "holds": "documents"} | options)
    with pytest.raises(UserError, match=message):
        list(read_source(source, tmp_path, Counter()))


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.root: missing"):
        list(read_source(Source(path="x", split="train", holds="documents"), None, Counter()))


def test_huggingface_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"key": [1, 2], "text": ["one", ""], "unused": [[1], [2]]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(str(tmp_path / "hf"))
    source = Source(path="hf", split="train", holds="documents", format="huggingface", columns={"id": "key"})
    good, bad = read_source(source, tmp_path, Counter())
    assert isinstance(good, Row) and good.record == Document("1", "one")
    assert str(bad) == 'hf:row 2: text is empty: {"key": 2, "text": ""}'
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "hf").symlink_to(tmp_path / "hf")
    with pytest.raises(UserError, match="leads out of data.root"):
        list(read_source(source, tmp_path / "outside", Counter()))


def test_excerpt_is_short_and_printable() -> None:
    assert excerpt("a\x1b[31m\n\tb") == "a [31m b"
    assert len(excerpt("x" * 1000)) == 60 and excerpt("\ud800") == "\\ud800"


# --- fuzz -----------------------------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KEYS = st.sampled_from(
    ["id", "text", "question", "answer", "answers", "doc_id", "choices", "type", "document", "evidence_text", "qa_pairs", "title"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["doc", "qna", "A", "<T - Wikipedia 1> x"])
    | st.text(max_size=8)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12)
FORMATS = [("jsonl", "documents"), ("jsonl", "questions"), ("jsonl", "choices"), ("csv", "documents"), ("csv", "questions")]
FORMATS += [
    ("interleaved", "both"),
    ("interleaved", "questions"),
    ("wiki_pages", "both"),
    ("wiki_pages", "documents"),
    ("choices", "choices"),
]


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """JSON of nearly the right shape, as a list, as lines or as CSV, with some bytes broken."""
    rows = draw(st.lists(st.dictionaries(KEYS, VALUES, max_size=6) | VALUES, max_size=5))
    shape = draw(st.sampled_from(["list", "lines", "csv"]))
    if shape == "csv":
        text = "text,question,answer\n" + "\n".join(",".join(map(str, row)) if isinstance(row, dict | list) else str(row) for row in rows)
    else:
        text = json.dumps(rows, indent=0) if shape == "list" else "\n".join(map(json.dumps, rows))
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(content)


@pytest.mark.parametrize("format, holds", FORMATS)
@FUZZ
@given(content=contents())
def test_fuzz_text_formats(tmp_path: Path, format: str, holds: str, content: bytes) -> None:
    rows = read(tmp_path, content, holds, format)
    for row in rows:
        if isinstance(row, Refusal):
            assert row.where.startswith(str(tmp_path / "x")) and row.reason and len(row.excerpt) <= 60
            str(row).encode("utf-8")
        else:
            assert_usable(row.record)
    assert not any(isinstance(row, Refusal) and row.ends_source for row in rows[:-1])
    if format == "jsonl":  # nothing is lost: each line that holds something is a row
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert len(rows) == sum(bool(line.strip()) for line in lines)


def assert_usable(record: Document | Question | ChoiceQuestion) -> None:
    texts = [record.text] if isinstance(record, Document) else [record.question]
    texts += (
        list(record.answers)
        if isinstance(record, Question)
        else list(record.choices)
        if isinstance(record, ChoiceQuestion)
        else [record.id]
    )
    for text in texts:
        assert text.strip() == text and text
        text.encode("utf-8")


@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=2)), max_size=4), cut=st.integers(0, 40))
def test_fuzz_parquet(tmp_path: Path, edits: list[tuple[int, bytes]], cut: int) -> None:
    write_parquet(tmp_path / "p", {"id": [1, 2], "text": ["one", "two"]}, compression="NONE", use_dictionary=False, store_schema=False)
    content = bytearray((tmp_path / "p").read_bytes())
    for at, new in edits:
        at %= len(content)
        content[at : at + len(new)] = new
    rows = read(tmp_path, bytes(content[: len(content) - cut]) if cut > 30 else bytes(content), format="parquet")
    for row in rows:
        if isinstance(row, Row):
            assert_usable(row.record)

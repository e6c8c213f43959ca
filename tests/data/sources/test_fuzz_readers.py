"""Readers on nearly right files: rows or refusals, nothing else, and nothing lost."""

import codecs
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.records import ChoiceQuestion, Document, Question, Refusal
from data.sources.raw_rows import Row
from tests.data.sources.reading import read, write_parquet

FUZZ_EXAMPLES = int(os.environ.get("STUDYHALL_FUZZ", "100"))  # for each format

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
        if (lines := lines_of(content)) is not None:
            assert len(rows) == sum(bool(line.strip()) for line in lines)
        else:
            assert isinstance(rows[-1], Refusal) and rows[-1].ends_source


def lines_of(content: bytes) -> list[bytes] | None:
    """As they stand in UTF-8; None for a file that begins as UTF-16 and is none."""
    if content[:2] not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    try:
        return content.decode("utf-16").encode().split(b"\n")
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", [b"", b"\n\n", b"\x00"])
def test_lines_in_utf_16(tmp_path: Path, encoding: str, end: bytes) -> None:
    """Nothing behind the mark is no row; half a character is one refusal."""
    mark = codecs.BOM_UTF16_LE if encoding == "utf-16-le" else codecs.BOM_UTF16_BE
    for text in ("", '{"text": "ä one"}\n{"text": "two"}'):
        test_fuzz_text_formats.hypothesis.inner_test(tmp_path, "jsonl", "documents", mark + text.encode(encoding) + end)  # type: ignore[attr-defined]


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

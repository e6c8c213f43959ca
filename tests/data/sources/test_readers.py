"""JSON lines and lists: every bad input is a refusal with place and reason, never a crash, never a silent loss."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.config import Source
from data.ground import strict_json
from data.readers import read_source
from data.records import ChoiceQuestion, Document, Question
from tests.data.sources.reading import GOOD, place, read, records, refusals

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
        ({"answer": 1}, "answer is a number, not a letter; read it as one (from 0) with columns: {answer_index: answer}"),
        ({"answer": None}, "answer is null"),
        ({"choices": "A) x"}, "choices is text, not a list"),
        ({"choices": []}, "choices is an empty list"),
        ({"choices": ["x"]}, "choices has fewer than two entries"),
        ({"choices": [f"option {n}" for n in range(27)]}, "choices has more entries than there are letters to name them"),
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

"""Tables as people have them: any ending, any separator, packed or not; lists and numbers as other programs write them, read or refused."""

import datetime
import json
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from console import UserError
from data.config import DataConfig, Source
from data.ground.strict_json import StrictDecoder, decode_line
from data.load import load_corpus
from data.readers import read_source
from data.records import Refusal
from data.sources.raw_rows import Row
from data.sources.spelling import NoList, listed, spelled
from tests.conftest import ROOT
from tests.data.sources.faulty_sources import save_dataset
from tests.data.sources.reading import read, records, refusals, write_parquet


def told(folder: Path, content: bytes | str, name: str, holds: str = "questions", **more: Any) -> list[Row | Refusal]:
    """As a source without a format."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = Source.model_validate({"path": name, "split": "train", "holds": holds, **more})
    return list(read_source(source, folder, Counter()))


# --- lists in cells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a', 'b']", ["a", "b"]),
        ("['a' 'b']", ["a", "b"]),  # numpy's; Python would read 'ab'
        ("['a'\n 'b c' \"d'e\"]", ["a", "b c", "d'e"]),
        ("['it\\'s', \"so\"]", ["it's", "so"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("[np.str_('a'), np.str_('b')]", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("[1, 2]", [1, 2]),
        ('{"text": ["a"], "answer_start": [3]}', {"text": ["a"], "answer_start": [3]}),
        ("{'text': ['a'], 'answer_start': [3]}", {"text": ["a"], "answer_start": [3]}),
        ("('a', 'b')", ["a", "b"]),  # a tuple, and a set in the order in which it stands there
        ('("a",)', ["a"]),
        ("{'b', 'a'}", ["b", "a"]),
        ("('a')", "('a')"),  # no tuple for Python either
        ("('a', 1)", "('a', 1)"),
        ('("Ebba" and "Holm")', '("Ebba" and "Holm")'),
        ("('a', 'b') of c", "('a', 'b') of c"),
        ("[sic] he said", "[sic] he said"),  # texts
        ("[1 of 3]", "[1 of 3]"),
        ("{x: 1}", "{x: 1}"),
        ("a ['b']", "a ['b']"),
    ],
)
def test_lists_as_others_write_them(text: str, value: Any) -> None:
    assert listed(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "['a' ... 'z']",
        "['a', 'b'",
        "['a''b']",
        "['a', None]",
        "[nan, 'a']",
        "['a' nan]",
        "[1 2 3]",
        "['a'] and ['b']",
        "{'text': array(['a'], dtype=object), 'answer_start': array([3])}",
    ],
)
def test_lists_that_are_not_whole_are_refused(text: str) -> None:
    with pytest.raises(NoList):
        listed(text)


def test_answers_and_choices_in_cells(tmp_path: Path) -> None:
    rows = told(tmp_path, "question,answers\nq1,\"['a', 'b']\"\nq2,\"['a' 'b']\"\nq3,plain\nq4,\"['a' ... 'z']\"\n", "a.csv")
    assert [record.answers for record in records(rows)] == [("a", "b"), ("a", "b"), ("plain",)]
    assert [one.reason for one in refusals(rows)] == ["answers is a list that was written out as text and cannot be read; write it as JSON"]
    [choice] = records(told(tmp_path, "question,choices,answer\nq,\"['x' 'y']\",B\n", "c.csv", "choices"))
    assert choice.choices == ("x", "y")
    [refused] = refusals(told(tmp_path, "question,answer\nq,\"['a', 'b']\"\n", "b.csv"))
    assert refused.reason == "answer is a list in a cell; read it as one with columns: {answers: answer}"
    [record] = records(told(tmp_path, "question,answer\nq,\"['a', 'b']\"\n", "b.csv", columns={"answers": "answer"}))
    assert record.answers == ("a", "b")
    [code] = records(told(tmp_path, json.dumps({"question": "What does it print?", "answer": "['a', 'b']"}), "a.jsonl"))
    assert code.answers == ("['a', 'b']",)  # the twin: JSON has lists of its own, so that this is a text


def test_answers_as_squad_has_them(tmp_path: Path) -> None:
    row = {"question": "q", "answers": {"text": ["a", "b", "a"], "answer_start": [1, 2, 3]}}
    assert [r.answers for r in records(told(tmp_path, json.dumps(row), "a.jsonl"))] == [("a", "b")]
    write_parquet(tmp_path / "p.parquet", {"question": ["q"], "answers": [row["answers"]]})
    assert [r.answers for r in records(told(tmp_path, (tmp_path / "p.parquet").read_bytes(), "p.parquet"))] == [("a", "b")]
    none = {"question": "q", "answers": {"text": [], "answer_start": []}}
    assert refusals(told(tmp_path, json.dumps(none), "b.jsonl"))[0].reason == "answers.text is an empty list"


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (decode_line("1.50", StrictDecoder()), "1.50"),  # a price, as it was written
        (decode_line("1e3", StrictDecoder()), "1e3"),
        (3, "3"),
        (2**63 + 1, "9223372036854775809"),
        (3.0, "3"),
        (0.1, "0.1"),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+3"), "1000"),
        (True, "true"),
        (datetime.date(2001, 3, 1), "2001-03-01"),
        (datetime.datetime(2001, 3, 1), "2001-03-01"),
        (datetime.datetime(2001, 3, 1, 4, 5), "2001-03-01T04:05:00"),
        (float("nan"), None),
        (Decimal("NaN"), None),
        ("x", None),
        ([1], None),
    ],
)
def test_values_as_texts(value: Any, text: str | None) -> None:
    assert spelled(value) == text


def test_numbers_are_texts_by_declaration_only(tmp_path: Path) -> None:
    rows = '{"question": "How much?", "answer": 1.50}\n{"question": "Since when?", "answers": [1998, "in 1998"]}\n{"question": "Old?", "answer": true}'
    reasons = ["answer is a number, not text", "answers[0] is a number, not text", "answer is true or false, not text"]
    assert [one.reason for one in refusals(told(tmp_path, rows, "a.jsonl"))] == reasons
    found = records(told(tmp_path, rows, "a.jsonl", numbers="text"))
    assert [record.answers for record in found] == [("1.50",), ("1998", "in 1998"), ("true",)]
    days = pa.array([datetime.date(2001, 3, 1)])
    write_parquet(
        tmp_path / "p.parquet", {"question": ["q"], "answer": pa.array([Decimal("12.50")]), "answers": pa.array([["x"]]), "day": days}
    )
    content = (tmp_path / "p.parquet").read_bytes()
    assert refusals(told(tmp_path, content, "p.parquet"))[0].reason == "answer is a number, not text"
    assert records(told(tmp_path, content, "p.parquet", numbers="text"))[0].answers == ("12.50", "x")
    dated = told(tmp_path, content, "p.parquet", numbers="text", columns={"answer": "day"})
    assert records(dated)[0].answers == ("2001-03-01", "x")


def test_ids_to_the_last_digit(tmp_path: Path) -> None:
    """2^53 + 1 is no float: whole numbers and decimals are read exactly, floats of that size refused, for two may have become one."""
    big = 2**53 + 1
    exact = {"id": pa.array([big, 2**53]), "text": ["one", "two"]}
    write_parquet(tmp_path / "a", exact)
    assert [r.id for r in records(read(tmp_path, (tmp_path / "a").read_bytes(), format="parquet"))] == [str(big), str(2**53)]
    write_parquet(tmp_path / "b", {**exact, "id": pa.array([Decimal(big), Decimal(7)], pa.decimal128(38, 0))})
    assert [r.id for r in records(read(tmp_path, (tmp_path / "b").read_bytes(), format="parquet"))] == [str(big), "7"]
    write_parquet(tmp_path / "c", {**exact, "id": pa.array([float(big), 7.0])})
    rows = read(tmp_path, (tmp_path / "c").read_bytes(), format="parquet")
    assert [r.id for r in records(rows)] == ["7"] and refusals(rows)[0].reason.startswith("id is a number beyond 2^53 as a float")
    [row] = records(read(tmp_path, f'{{"id": {big}, "text": "one"}}'))
    assert row.id == str(big)
    [refused] = refusals(read(tmp_path, f'{{"id": {big}.0, "text": "one"}}'))
    assert "2^53" in refused.reason


# --- endings, separators, packing -----------------------------------------------------------------------------------


# --- what other libraries make of a table ---------------------------------------------------------------------------


def test_splits_of_saved_data_sets_and_names_of_configurations(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for split in ("train", "validation"):
        save_dataset(folder / split, pa.table({"id": [f"{split}-1"], "text": [f"of {split}"]}))
        (folder / split / "dataset_info.json").write_text(json.dumps({"splits": {split: {"name": split}}}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))

    def texts(**more: Any) -> list[str]:
        sources = [{"path": "d", "split": "train", "holds": "documents", "format": "huggingface", **more}]
        return [
            d.text for d in load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": sources}), 0).part("train").documents
        ]

    assert texts() == ["of train"] and texts(hub_split="validation") == ["of validation"]
    for more, reason in (
        ({"hub_split": "dev"}, "d: has no split dev, only train, validation; name one with hub_split: train"),
        ({"configuration": "en"}, "d: configuration is of a hub data set, and this is a saved one"),
        ({"format": "csv", "hub_split": "dev"}, "hub_split is of format huggingface, not csv"),
    ):
        with pytest.raises(UserError, match=reason):
            texts(**more)


HUB = """
import json, os, pathlib, shutil, sys
from collections import Counter
folder = pathlib.Path(sys.argv[1])
os.environ |= {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
import datasets
for name in ("en", "sv"):
    files = {}
    for split in ("train", "validation"):
        files[split] = str(folder / f"{name}-{split}.jsonl")
        rows = [{"id": "1", "question": f"{name} {split}?", "answer": "one"}, {"id": "2", "question": f"{name} {split}!", "answer": 5}]
        pathlib.Path(files[split]).write_text("".join(json.dumps(row) + "\\n" for row in rows))
    made = datasets.load_dataset_builder("json", name, data_files=files, cache_dir=str(folder / "datasets"))
    made.download_and_prepare()
    cached = folder / "datasets" / "owner___name" / name / "0.0.0" / "abc"  # as a data set of the hub lies in the library's cache
    shutil.copytree(made.cache_dir, cached)
    for file in cached.glob("json-*"):
        file.rename(cached / file.name.replace("json-", "name-"))
from data.config import Source
from data.readers import read_source
for more in ({"configuration": "sv", "hub_split": "validation"}, {"configuration": "en", "numbers": "text"}, {}):
    source = Source(path="owner/name", split="train", holds="questions", format="huggingface", **more)
    try:
        print([str(row) if not hasattr(row, "record") else (row.record.question, *row.record.answers) for row in read_source(source, None, Counter())])
    except Exception as error:
        print(error)
"""


def test_configurations_and_splits_of_the_hub(tmp_path: Path) -> None:
    """From the library's own cache, without a network; a column of texts and numbers has become JSON there."""
    done = subprocess.run([sys.executable, "-c", HUB, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = done.stdout.strip().splitlines()
    assert said[0] == "[('sv validation?', 'one'), 'owner/name:row 2: answer is a number, not text: 5']", done.stderr[-2000:]
    assert said[1] == "[('en train?', 'one'), ('en train!', '5')]"
    assert "not loaded: " in said[2] and "configuration: NAME" in said[2]


# --- choices and answers as data sets of the hub have them -------------------------------------------------------------


def test_choices_with_labels(tmp_path: Path) -> None:
    """ARC, OpenBookQA, CommonsenseQA: {"text", "label"}, and the answer by its label, which may be a number."""
    rows = [
        {"question": "q", "choices": {"text": ["x", "y"], "label": labels}, "answerKey": key}
        for labels, key in ((["A", "B"], "B"), (["1", "2"], "1"), (["A", "B"], "C"), (["A", "B", "C"], "C"))
    ]
    read = told(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "a.jsonl", "choices", columns={"answer": "answerKey"})
    assert [record.answer_index for record in records(read)] == [1, 0]
    assert [bad.reason for bad in refusals(read)] == [
        "answer (column answerKey) is none of the choices' labels, or of several",
        "choices has 2 texts and 3 labels",
    ]


def test_an_answer_by_its_number_is_said_to_be_one(tmp_path: Path) -> None:
    row = json.dumps({"question": "q", "choices": ["x", "y", "z"], "answer": 1}) + "\n"
    [bad] = refusals(told(tmp_path, row, "a.jsonl", "choices"))
    assert "read it as one (from 0) with columns: {answer_index: answer}" in bad.reason
    [good] = records(told(tmp_path, row, "a.jsonl", "choices", columns={"answer_index": "answer"}))
    assert good.answer_index == 1


def test_squads_answers_one_by_one(tmp_path: Path) -> None:
    row = json.dumps({"question": "q", "answers": [{"text": "a", "answer_start": 0}, {"text": "b", "answer_start": 4}]}) + "\n"
    [good] = records(told(tmp_path, row, "a.jsonl"))
    assert good.answers == ("a", "b")
    assert refusals(told(tmp_path, row.replace('"text": "b"', '"span": "b"'), "a.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "Question,Answer\nq,a\n", "no column 'question' (columns: Question, Answer); say columns: {question: Question}"),
        ("a.csv", "question,answer\rq,a\r", "lines end with carriage returns alone, as on old Macintoshes; save it anew as CSV UTF-8"),
    ],
)
def test_what_is_to_be_done(name: str, content: str, reason: str, tmp_path: Path) -> None:
    [bad] = refusals(told(tmp_path, content, name))
    assert bad.reason == reason

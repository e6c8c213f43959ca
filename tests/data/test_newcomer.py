"""What somebody new to it gives by mistake: refused within two seconds, in one line that says where, why, and what to do.

Time of processors, this process's and its children's, so that a busy machine changes nothing.
"""

import json
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from console import door
from data.__main__ import main as data_main
from tests.data.build import office_files as office
from tests.data.sources.faulty_sources import parquet_bytes
from tests.data.sources.reading import packed

ROW = {"question": "Who?", "answer": "Ada"}
LINE = json.dumps(ROW) + "\n"
CHECK = ("--holds", "questions")

FILES: list[tuple[str, bytes | str, tuple[str, ...], str]] = [
    ("frage.csv", "frage;antwort\nWer?;Ada\n", CHECK, r"frage.csv:1: no column 'question' \(columns: frage, antwort\)"),
    ("excel.csv", "question;answer\nWho?;café\n".encode("cp1252"), CHECK, r"excel.csv:2: not UTF-8"),
    ("excel.csv", "question,answer\nWho, and when?,Ada\n", CHECK, r"excel.csv:2: 3 fields where the header has 2"),
    ("book.xlsx", b"PK\x03\x04", CHECK, r"book.xlsx: no whole zip archive \(cut off, or another kind of file\)"),
    ("book.xlsx", office.xlsx({"A": [["q"], [1]], "B": [["question"], ["q"]]}), CHECK, r"book.xlsx: 2 sheets have rows \(A, B\); name one with configuration: A"),
    ("book.xls", b"\xd0\xcf\x11\xe0", CHECK, r"book.xls: no reader for .xls; save it as .xlsx"),
    ("list.jsonl", json.dumps([ROW], indent=1), CHECK, r"list.jsonl:1: malformed JSON"),
    ("dict.json", json.dumps({"data": [ROW]}, indent=1), CHECK, r"dict.json: one object over several lines; expected one list of objects"),
    ("python.json", str([ROW]), CHECK, r"python.json:1: malformed JSON: Expecting property name"),
    ("cut.jsonl.gz", packed(LINE.encode() * 99)[:-12], CHECK, r"cut.jsonl.gz: cannot be unpacked: Compressed file ended"),
    ("renamed.csv.gz", LINE, CHECK, r"renamed.csv.gz: cannot be unpacked: Not a gzipped file"),
    ("packed.parquet.gz", b"\x1f\x8b", CHECK, r"packed.parquet.gz: say how it is written"),
    ("pandas.csv", "question,answers\nWho?,\"['Ada' ... 'Eva']\"\n", CHECK, r"pandas.csv:2: answers is a list that was written out as text"),
    ("pandas.csv", "question,answer\nWho?,\"['Ada', 'A.']\"\n", CHECK, r"columns: \{answers: answer\}"),
    ("numbers.jsonl", '{"question": "When?", "answer": 1998}\n', CHECK, r"numbers.jsonl:1: answer is a number, .*say numbers: text where"),
    ("squad.jsonl", '{"question": "q", "answers": {"text": [], "answer_start": []}}\n', CHECK, r"squad.jsonl:1: answers.text is an empty list"),
    ("floats.parquet", parquet_bytes(pa.table({"question": ["q"], "answer": ["a"], "doc_id": [2.0**53]})), CHECK, r"doc_id is a number beyond 2\^53"),
    ("both.json", json.dumps([ROW]), ("--holds", "both"), r"both.json: holds: both needs format interleaved or wiki_pages"),
    ("q.jsonl", LINE, ("--holds", "questions", "--column", "anwser=a"), r"anwser is no field of questions; did you mean answer"),
    ("a.parquet", "question,answer\n", CHECK, r"a.parquet: not a readable Parquet file"),
    ("text.tsv", "question,answer\nWho?,Ada\n", CHECK, r"text.tsv:1: no column 'question' \(columns: question,answer\)"),
]  # fmt: skip
FOLDERS: list[tuple[str, bytes | str, tuple[str, ...], str]] = [
    ("a.docx", b"\xd0\xcf\x11\xe0", (), r"holds no document that can be used \(1 files: 1 encrypted, or of an old kind"),
    ("a.pptx", office.zipped({"a": "b"}), (), r"1 not a readable PPTX"),
    ("a.epub", b"PK", (), r"1 no whole zip archive"),
    ("a.ipynb", "{}", (), r"1 not a notebook"),
    ("a.xlsx", b"PK", (), r"1 no whole zip archive"),
    ("a.numbers", b"PK", (), r"1 no reader for .numbers"),
    ("a.html", b"<meta charset=x-unknown><p>text", (), r"1 an encoding that nobody knows"),
    ("a.csv", "a;b\n1;2\n", (), r"1 no column of text"),
    ("a.json", json.dumps({"name": "package"}, indent=1), (), r"1 one object over several lines"),
    ("a.md", "# A\n\n" + "words of it " * 20, ("--column", "inhalt=text"), r"--column inhalt=text: expected FIELD=COLUMN with text, title"),
    ("a.md", "# A\n\n" + "words of it " * 20, ("--endpoint", "http://127.0.0.1:9/v1", "--model", "m"), r"--endpoint .*: cannot be reached"),
    ("a.md", "# A\n\n" + "words of it " * 20, ("--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--extra-body", "{a: 1}"), r"--extra-body: malformed JSON"),
    ("a.md", "# A\n\n" + "words of it " * 20, ("--extra-body", "{}"), r"--extra-body is for --endpoint"),
]  # fmt: skip

GOOD = """name: x
runs: {runs}
data: {{root: {root}, sources: [{{path: t.jsonl, split: train, holds: documents}}, {{path: q.jsonl, split: test, holds: questions}}]}}
model: {{tiny: {{}}}}
arms: {{read: {{stages: [{{mix: {{train_documents: 1}}, epochs: 1, batch_items: 1, rate: 1e-3}}]}}}}
"""
COMMANDS: list[tuple[str, tuple[str, ...], str]] = [
    ("trainer", ("nowhere.yaml",), r"nowhere.yaml: cannot be read: No such file"),
    ("trainer", ("q.jsonl", "--dry-run"), r"q.jsonl:1: "),
    ("trainer", ("x.yaml", "trainer.zero_stge=3", "--dry-run"), r"override trainer.zero_stge=3: trainer.zero_stge: unknown key; did you mean zero_stage"),
    ("trainer", ("x.yaml", "data.root=elsewhere", "--dry-run"), r"elsewhere/t.jsonl: cannot be read: No such file"),
    ("trainer", ("x.yaml", "model={name: ./models/mine}", "--dry-run"), r"model.name: there is no folder ./models/mine"),
    ("trainer", ("x.yaml", "model={name: q.jsonl}", "--dry-run"), r"model.name: q.jsonl is a file; give the folder"),
    ("trainer", ("x.yaml", "model={name: empty}", "--dry-run"), r"model.name: empty holds no config.json; give the folder with config.json, tokenizer"),
    ("trainer", ("x.yaml", "exam.compare_to=raed", "--dry-run"), r"exam.compare_to: no arm is called 'raed'; did you mean read"),
    ("trainer", ("x.yaml", "runs=q.jsonl"), r"q.jsonl.*a file is in the way; give another"),
    ("trainer", ("x.yaml", "exam.retention=none.jsonl"), r"exam.retention: none.jsonl: no such file of questions"),
    ("trainer", ("x.yaml", "trainer.num_workers=0", "--dry-run"), r"override trainer.num_workers=0: trainer.num_workers: input should be greater"),
    ("trainer", ("x.yaml", "--update", "may"), r"--update may: the experiment has no such update"),
    ("trainer", ("gc", "x.yaml"), r"there is no such run"),
    ("data", ("check", "x.yaml", "model={name: empty}"), r"model.name: empty holds no config.json"),
    ("data", ("plan", "x.yaml", "model={name: empty}"), r"model.name: empty holds no config.json"),
    ("data", ("plan", "x.yaml", "--step", "read:999"), r"step 999: the arm has 1 steps, counted from 0"),
    ("data", ("plan", "x.yaml", "--diff", "read", "mix"), r"no arm is called mix"),
    ("data", ("build", "nowhere", "--out", "out"), r"nowhere: no such folder"),
    ("data", ("build", "t.jsonl", "--out", "out"), r"t.jsonl: no such folder"),
    ("evaluation", ("x.yaml",), r"no trained arms in .*; run python -m trainer X.yaml first"),
    ("evaluation", ("ask", "./mine", "Who?"), r"MODEL: there is no folder ./mine"),
    ("evaluation", ("ask", "empty", "Who?"), r"MODEL: empty holds no config.json"),
    ("data", ("check", "."), r"is a folder; give one file of records, or an experiment"),
    ("evaluation", ("ask", "./mine", "Who?", "--answer-tokens", "0"), r"--answer-tokens"),
    ("evaluation", ("examine", "empty", "nowhere.csv"), r"nowhere.csv: no such file of questions"),
    ("tune", ("x.yaml", "--dry-run"), r"search: is missing"),
    ("cluster", ("plan", "x.yaml", "--gpus", "8xH900"), r"nothing is known of H900; known: A100-40G"),
    ("cluster", ("plan", "x.yaml", "--gpus", "8x{name: X, memory: 24}"), r"tflops: missing; give GiB, TFLOPS and GB/s"),
    ("cluster", ("plan", "x.yaml", "--gpus", "8xH100", "--gpus-per-node", "-1"), r"--gpus-per-node: -1: expected a whole number, 1 or more"),
    ("data", ("build", "empty", "--out", "out", "--price", "0.1", "nan"), r"--price: nan: expected a number"),
    ("cluster", ("plan", "x.yaml", "--gpus", "0xH100"), r"expected a number and a kind, e.g. 16xH100"),
    ("cluster", ("plan", "x.yaml", "model={name: ./mine}", "--gpus", "8xH100"), r"there is no folder ./mine"),
]  # fmt: skip


def test_there_are_forty() -> None:
    assert len(FILES) + len(FOLDERS) + len(COMMANDS) >= 40


def told(arguments: list[str], capfd: pytest.CaptureFixture[str], main: Callable[..., int | None] = data_main) -> tuple[str, float]:
    """(what is said, seconds of processors); exit code 2, one line of error, no traceback."""
    before = sum(os.times()[:4])
    with pytest.raises(SystemExit) as stop:
        door(lambda _: main(arguments))
    took = sum(os.times()[:4]) - before
    said = capfd.readouterr()
    errors = [line for line in said.err.splitlines() if re.match(r"(python -m [a-z ]+: )?error: ", line)]
    assert stop.value.code == 2 and len(errors) == 1 and "Traceback" not in said.err, said.err
    return errors[0], took


@pytest.mark.parametrize(("name", "content", "arguments", "reason"), FILES)
def test_files_of_records(
    name: str, content: bytes | str, arguments: tuple[str, ...], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    from_here = ["check", str(tmp_path / name), *arguments]
    said, took = told(from_here, capfd)

    assert re.search(reason, said), said
    assert took < 2 and len(said) < 700


@pytest.mark.parametrize(("name", "content", "arguments", "reason"), FOLDERS)
def test_folders_to_build_from(
    name: str, content: Any, arguments: tuple[str, ...], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    dry = [] if "--endpoint" in arguments else ["--dry-run"]
    said, took = told(["build", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *dry, *arguments], capfd)

    assert re.search(reason, said), said
    assert took < 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("room", "arguments", "reason"), COMMANDS)
def test_commands(
    room: str, arguments: tuple[str, ...], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q.jsonl").write_text(LINE)
    (tmp_path / "t.jsonl").write_text('{"text": "A crane lifts forty tonnes."}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.yaml").write_text(GOOD.format(root=tmp_path, runs=tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    main = import_module(f"{room}.__main__").main  # its libraries are paid for before
    said, took = told(list(arguments), capfd, main)

    assert re.search(reason, said), said
    assert took < 2 and len(said) < 700 and not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()

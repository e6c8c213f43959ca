"""Files of questions and folders of documents: what is read, and where it says a row is wrong."""

import gzip
import json
from pathlib import Path

import pytest

from console import UserError
from evaluation.asking.question_files import read_documents, read_questions


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_lines_of_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "Who?", "answers": ["Ada", "A."]}, {"id": 7, "question": "Where?", "answer": "Oslo"})
    first, second = read_questions(path)
    assert (first.question, first.answers) == ("Who?", ("Ada", "A."))
    assert (second.id, second.answers) == ("7", ("Oslo",))
    assert first.id != second.id


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"question": "x", ', r"q.jsonl:2: truncated"),
        ({"question": "Where?"}, r"q.jsonl:2.*answer"),
        ({"question": " ", "answers": ["x"]}, r"q.jsonl:2.*question"),
        ({"question": "Where?", "answers": [3.5]}, r"q.jsonl:2.*answers"),
        ({"question": "Where?", "answers": []}, r"q.jsonl:2.*answers"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, reason: str) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "Who?", "answers": ["Ada"]}, row)
    with pytest.raises(UserError, match=reason):
        read_questions(path)


def test_other_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of questions"):
        read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="two questions have the id 1"):
        read_questions(write(tmp_path / "t.jsonl", *[{"id": 1, "question": q, "answers": ["a"]} for q in ("x", "y")]))


def test_few_shot_instances(tmp_path: Path) -> None:
    text = "Question: first?\nAnswer:1988\n\nQuestion: how many?\nAnswer:"
    path = write(tmp_path / "nq.json", {"type": "text_only", "instances": [{"text": text, "output": ["Nine", "9"]}]})
    (question,) = read_questions(path)
    assert (question.question, question.answers) == ("how many?", ("Nine", "9"))
    bad = write(tmp_path / "bad.json", {"instances": [{"text": text, "output": ["x"]}, {"text": "none", "output": ["x"]}]})
    with pytest.raises(UserError, match=r"bad.json: instances\[1\]: no line"):
        read_questions(bad)
    with pytest.raises(UserError, match=r"bad.json:1: malformed JSON"):
        read_questions(write(tmp_path / "bad.json", '{"instances": [', "oops"))
    with pytest.raises(UserError, match=r"bad.json:1: expected"):
        read_questions(write(tmp_path / "bad.json", '{"data": []}'))


def test_questions_of_any_table(tmp_path: Path) -> None:
    """Semicolons, JSON lists, packed files: as in an experiment, by the ending."""
    (tmp_path / "q.csv").write_text("question;answers\nWho?;['Ada', 'A. Holm']\n")
    write(tmp_path / "l.json", [{"question": "Who?", "answers": ["Ada", "A. Holm"]}])
    (tmp_path / "z.jsonl.gz").write_bytes(
        gzip.compress(b'{"question": "Who?", "answers": {"text": ["Ada", "A. Holm"], "answer_start": [1, 2]}}')
    )
    for name in ("q.csv", "l.json", "z.jsonl.gz"):
        (question,) = read_questions(tmp_path / name)
        assert (question.question, question.answers) == ("Who?", ("Ada", "A. Holm")), name


def test_the_real_retention_file(shared_data: Path) -> None:
    questions = read_questions(shared_data / "wiki_bio" / "nq_retention.json")
    assert len(questions) == 1769
    assert questions[0].question == "on the 6th day of christmas my true love sent to me?"
    assert questions[0].answers == ("6 geese a-laying", "maids a-milking")


def test_a_folder_of_documents(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("Second.")
    (tmp_path / "a.txt").write_text("First.")
    (tmp_path / "image.png").write_bytes(b"\x89")
    write(tmp_path / "z.jsonl", {"id": "z1", "text": "Third."})
    assert [(d.id, d.text) for d in read_documents(tmp_path)] == [("a.txt", "First."), ("deep/b.md", "Second."), ("z1", "Third.")]
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="bad.txt: not UTF-8 at byte 0"):
        read_documents(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_documents(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"holds no .txt, no .md and no table"):
        read_documents(tmp_path / "none")


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    rows = [{"question": f"Who is {n}?", "answer": "Ada"} for n in range(3)]
    found = read_questions(write(tmp_path / "q.jsonl", *rows))
    assert [question.id for question in found] == ["q.jsonl:1", "q.jsonl:2", "q.jsonl:3"]
    with pytest.raises(UserError, match="two questions have the id 7"):  # the twin: an id of one's own counts
        read_questions(write(tmp_path / "q.jsonl", {**rows[0], "id": 7}, {**rows[1], "id": 7}))


def test_equal_names_in_two_folders_are_two_documents(tmp_path: Path) -> None:
    for folder, text in (("north", "The crane."), ("south", "The ferry.")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.jsonl", {"text": text}, {"id": "own", "text": f"{text} Its own."})
        (tmp_path / folder / "n.md").write_text(text)
    found = {document.id: document.text for document in read_documents(tmp_path)}
    assert found == {
        "north/a.jsonl:1": "The crane.", "own": "The crane. Its own.", "north/n.md": "The crane.",
        "south/a.jsonl:1": "The ferry.", "own (2)": "The ferry. Its own.", "south/n.md": "The ferry.",
    }  # fmt: skip

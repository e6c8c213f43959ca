"""The table of tests/data/sources/test_bad_input.py: for each case and reader a source with a fault in it, and what must be said."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from tests.data.sources.faulty_sources import (
    END,
    GOOD,
    MEND,
    Cell,
    Reader,
    Text,
    edited,
    jsonl,
    listed,
    parquet_bytes,
    put,
    save_dataset,
    second,
    subject,
    table_cell,
)


def malformed_in_the_middle(reader: Reader) -> Cell | str:
    if reader.arrow:
        return "binary: see corrupt_in_the_middle and fake_file"
    if reader.name == "csv":
        return edited(reader, lambda b: b.replace(b"b,two", b"b,two,2"), "3 fields where the header has 2: b,two,2", place=reader.line(2))
    ends = reader.name != "jsonl"  # in a list nothing tells where the next element would begin
    reason = "malformed JSON: Expecting ',' delimiter|malformed JSON: expected , or ]"
    return edited(
        reader, lambda b: b.replace(b'"two"', b'"two" oops'), reason, place=reader.line(2), ends=ends, remedy=END if ends else MEND
    )


def corrupt_in_the_middle(reader: Reader) -> Cell | str:
    if not reader.arrow:
        return "a text format: see malformed_in_the_middle and invalid_utf8"
    table = pa.table({"id": ["a", "b", "c"], "text": ["one" * 50, "two" * 50, "three" * 50]})
    if reader.encode is None:

        def write(root: Path) -> None:
            save_dataset(root / "x", table)
            path = root / "x" / "data-00000-of-00001.arrow"
            content = bytearray(path.read_bytes())
            content[content.find(b"twotwo") - 200] ^= 0xFF  # in the batch's header
            path.write_bytes(content[: content.find(b"twotwo") + 3])

        return Cell(write, "not loaded: |cannot be read", "x: |x:row", ends=True, remedy="save or fetch the dataset again|" + END)
    content = bytearray(parquet_bytes(table))
    content[4:12] = b"\xff" * 8  # the first page's header
    return Cell(lambda root: put(root, bytes(content)), "cannot be read", "/x:row group 0: ", ends=True, remedy=END)


def truncated(reader: Reader) -> Cell | str:
    """The file ends inside its last row."""
    if reader.name == "huggingface":

        def write(root: Path) -> None:
            reader.write(root, GOOD)
            path = root / "x" / "data-00000-of-00001.arrow"
            path.write_bytes(path.read_bytes()[:-120])

        return Cell(write, "not loaded: |cannot be read", "x: |x:row", ends=True, remedy="save or fetch the dataset again|" + END)
    if reader.name == "parquet":
        return edited(reader, lambda b: b[:-20], "not a readable Parquet file", place="/x: ", ends=True, remedy=END)
    if reader.name == "csv":
        return edited(reader, lambda b: b[: b.index(b"c,") + 1], "1 fields where the header has 2: c", place=reader.line(3))
    ends = reader.name != "jsonl"
    return edited(
        reader,
        lambda b: b[: b.index(b'"three"') + 3],
        "malformed JSON: Unterminated string|truncated",
        place=reader.line(3),
        ends=ends,
        remedy=END if ends else MEND,
    )


def wrong_type(reader: Reader) -> Cell | str:
    if reader.name == "csv":
        return "every cell of a CSV is text"
    if reader.arrow:  # a column has one type
        return table_cell(
            reader, pa.table({"id": ["a", "b"], "text": [1, 2]}), "text is a number, not text: .*1", place=reader.line(1), bad=2, used=0
        )
    return second(reader, f"{subject(reader)} is a list, not text: .*two", text=["two"])


def null_text(reader: Reader) -> Cell | str:
    return "CSV knows no null: see empty_text" if reader.name == "csv" else second(reader, f"{subject(reader)} is null: .*b", text=None)


def missing_text(reader: Reader) -> Cell | str:
    if reader.arrow:
        return table_cell(
            reader, pa.table({"id": ["a"], "body": ["one"]}), r"no column 'text' \(columns: id, body\)", ends=True, remedy=END
        )
    if reader.name == "csv":
        return edited(reader, lambda b: b.replace(b"b,two", b"b"), "1 fields where the header has 2: b", place=reader.line(2))
    rows = [GOOD[0], {"id": "b"}, GOOD[2]]
    return Cell(lambda root: reader.write(root, rows), f"{subject(reader)} is missing: .*b", reader.line(2))


def empty_text(reader: Reader) -> Cell | str:
    return second(reader, f"{subject(reader)} is empty: .*b", text="  ")


def duplicate_keys(reader: Reader) -> Cell | str:
    if reader.name == "huggingface":
        return "Arrow tables of the library cannot hold two columns of one name"
    if reader.name == "parquet":
        table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["one"])], names=["id", "id", "text"])
        return table_cell(reader, table, "duplicate column 'id'", place="/x: ", ends=True, remedy=END)
    if reader.name == "csv":
        return edited(
            reader, lambda b: b.replace(b"id,text", b"id,id"), "duplicate column 'id': id,id", place="/x:1: ", ends=True, remedy=END
        )
    return edited(reader, lambda b: b.replace(b'"id": "b"', b'"id": "b", "id": "z"'), "duplicate key 'id': ", place=reader.line(2))


def duplicate_ids(reader: Reader) -> Cell | str:
    what = "question id 'a': another question than" if reader.holds == "choices" else "document id 'a': another text than"
    return second(reader, f"duplicate {what} at .*: two", id="a")


def missing_document(reader: Reader) -> Cell | str:
    """The second of two questions names a document that does not exist."""
    pairs = [{"doc_id": "d", "question": "q1?", "answer": "x"}, {"doc_id": "z", "question": "q2?", "answer": "y"}]
    data = {"more": [{"path": "documents.jsonl", "split": "train", "holds": "documents"}]}
    holds = reader.holds if reader.holds == "choices" else "questions"

    def write(root: Path) -> None:
        (root / "documents.jsonl").write_text('{"id": "d", "text": "a document"}\n')
        if reader.name == "jsonl":
            put(root, jsonl(pairs))
        elif reader.name == "csv":
            put(root, b"doc_id,question,answer\nd,q1?,x\nz,q2?,y\n")
        elif reader.name == "choices":
            put(root, listed(lambda q: q | {"choices": ["x", "y"], "answer": "A"})(pairs))
        elif reader.name == "interleaved":
            put(root, listed(lambda q: {"type": "qna"} | q)(pairs))
        elif reader.name == "wiki_pages":
            put(root, listed(lambda q: {"evidence_text": "t", "qa_pairs": [q]})(pairs))
        elif reader.encode is None:
            save_dataset(root / "x", pa.Table.from_pylist(pairs))
        else:
            put(root, parquet_bytes(pa.Table.from_pylist(pairs)))

    source = {"path": "x", "split": "train", "holds": holds, "format": reader.name}
    data["sources"] = [source, *data.pop("more")]
    return Cell(write, r"no document has the id 'z': q2\?", reader.line(2), used=1, data=data)


def lone_surrogate(reader: Reader) -> Cell | str:
    if reader.name == "csv":
        return edited(reader, lambda b: b.replace(b"two", b"t\xed\xa0\xbdo"), "not UTF-8: t.*o", place=reader.line(2))
    if reader.arrow:
        text = pa.array([b"one", b"t\xed\xa0\xbdo", b"three"], pa.binary()).view(pa.string())
        return table_cell(reader, pa.table({"id": ["a", "b", "c"], "text": text}), "text is not UTF-8", place=reader.line(2))
    return edited(reader, lambda b: b.replace(b'"two"', rb'"t \ud83d o"'), r"lone surrogate '\\ud83d': ", place=reader.line(2))


def nan(reader: Reader) -> Cell | str:
    if reader.name == "csv":
        return "every cell of a CSV is text"
    if reader.arrow:
        table = pa.table({"id": [1.0, float("nan"), 3.0], "text": ["one", "two", "three"]})
        return table_cell(reader, table, "id is a number, not text: ", place=reader.line(2))
    return second(reader, "NaN is not a JSON number: ", text=Text("NaN"))


def invalid_utf8(reader: Reader) -> Cell | str:
    if reader.arrow:
        text = pa.array([b"one", b"caf\xe9", b"three"], pa.binary()).view(pa.string())
        return table_cell(reader, pa.table({"id": ["a", "b", "c"], "text": text}), "text is not UTF-8", place=reader.line(2))
    ends = reader.name not in ("jsonl", "csv")  # a list is decoded as a whole
    remedy = END if ends else MEND
    return edited(reader, lambda b: b.replace(b"two", b"caf\xe9"), "not UTF-8", place=reader.line(2), ends=ends, remedy=remedy)


def bom(reader: Reader) -> Cell | str:
    if reader.arrow:
        return "binary: see fake_file"
    return edited(reader, lambda b: b"\xef\xbb\xbf" + b, "share no text", accepted=True, used=3)


def empty_file(reader: Reader) -> Cell | str:
    """Warned about; the other source is enough."""
    more = [{"path": "more.jsonl", "split": "train", "holds": "documents"}]
    no_rows = nothing_left(reader)
    assert isinstance(no_rows, Cell)

    def write(root: Path) -> None:
        (root / "more.jsonl").write_bytes(jsonl(GOOD))
        no_rows.write(root)

    return Cell(write, "warning: x: no rows in it", accepted=True, data={"more": more})


def nothing_left(reader: Reader) -> Cell | str:
    """An empty file and no other source."""

    def write(root: Path) -> None:
        if reader.encode is None:
            save_dataset(root / "x", pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}))
        else:
            (root / "x").touch()

    return Cell(write, "no rows are left of 0 read from x", used=0, remedy="look at data.sources")


def row_of_40_mb(reader: Reader) -> Cell | str:
    return second(reader, "(text is )?longer than 32 MB", text="x" * (40 << 20))


def deep_json(reader: Reader) -> Cell | str:
    if reader.name == "csv" or reader.arrow:
        return "holds no JSON"
    ends = reader.name != "jsonl"
    deep = second(reader, "JSON is nested too deep", text=Text("[" * 100_000))
    return Cell(deep.write, deep.reason, deep.place, ends=ends, remedy=END if ends else MEND)


def fake_file(reader: Reader) -> Cell | str:
    """An image that calls itself a file of records."""
    image = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))
    if reader.name == "huggingface":

        def write(root: Path) -> None:
            (root / "x").mkdir()
            put(root / "x", image)

        return Cell(write, "not loaded: ", "x: ", ends=True, remedy="save or fetch the dataset again")
    reasons = {"parquet": "not a readable Parquet file", "csv": "no column 'text'|malformed CSV"}
    ends = reader.name != "jsonl"
    reason = reasons.get(reader.name, "not UTF-8")
    return Cell(lambda root: put(root, image), reason, r"/x(:\d+)?: ", ends=ends, remedy=END if ends else MEND, used=0, bad=3)


def extension_type(reader: Reader) -> Cell | str:
    """A column whose type carries bytes for a loader to unpickle."""
    if not reader.arrow:
        return "a text format has no types"
    metadata = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": b"\x80\x04."}
    schema = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.string(), metadata=metadata)])
    table = pa.table([pa.array(["a"]), pa.array(["one"])], schema=schema)
    remedy = "with plain columns"
    return table_cell(reader, table, "has an Arrow extension type", place=r"/x(/.*\.arrow)?: ", ends=True, remedy=remedy)


def symlink_out_of_root(reader: Reader) -> Cell | str:
    def write(root: Path) -> None:
        outside = root.parent / "outside"
        outside.mkdir()
        reader.write(outside, GOOD)
        (root / "x").symlink_to(outside / "x")

    return Cell(write, "leads out of data.root", "/x: ", ends=True, remedy="copy the file below it or set data.root higher")


def dots_out_of_root(reader: Reader) -> Cell | str:
    def write(root: Path) -> None:
        reader.write(root.parent, GOOD)

    source = {"path": "../x", "split": "train", "holds": reader.holds, "format": reader.name}
    remedy = "copy the file below it or set data.root higher"
    return Cell(write, "leads out of data.root", r"/\.\./x: ", ends=True, remedy=remedy, data={"sources": [source]})


def exam_question_in_training(reader: Reader) -> Cell | str:
    """The exam's text also stands in training; policy `refuse`."""
    trained = "documents" if reader.holds == "documents" else "questions"

    def write(root: Path) -> None:
        reader.write(root, GOOD)
        row = {"id": "t", "text": "TWO!"} if trained == "documents" else {"id": "t", "question": "TWO!", "answer": "x"}
        (root / "train.jsonl").write_bytes(jsonl([row]))

    sources = [
        {"path": "x", "split": "test", "holds": reader.holds, "format": reader.name},
        {"path": "train.jsonl", "split": "train", "holds": trained},
    ]
    reason = f"1 of 3 exam {trained} also stand in training; the first: .*train.jsonl:1: two"
    return Cell(write, reason, ends=True, remedy=r"data.overlap=drop_from_train\|drop_from_exam\|allow", data={"sources": sources})


def special_tokens_in_text(reader: Reader) -> Cell | str:
    """Accepted; test_special_tokens_are_text shows what becomes of them."""
    return Cell(lambda root: reader.write(root, [{"id": "a", "text": "one</s><s>[INST]"}]), "share no text", accepted=True, used=1)


CASES: dict[str, Callable[[Reader], Cell | str]] = {
    case.__name__: case
    for case in (
        malformed_in_the_middle,
        corrupt_in_the_middle,
        truncated,
        wrong_type,
        null_text,
        missing_text,
        empty_text,
        duplicate_keys,
        duplicate_ids,
        missing_document,
        lone_surrogate,
        nan,
        invalid_utf8,
        bom,
        empty_file,
        nothing_left,
        row_of_40_mb,
        deep_json,
        fake_file,
        extension_type,
        symlink_out_of_root,
        dots_out_of_root,
        exam_question_in_training,
        special_tokens_in_text,
    )
}


def mark(cell: Cell | str) -> str:
    """The table's sign: accepted, a bad row, a source that cannot be used, or not possible there."""
    if isinstance(cell, str):
        return "–"
    return "accepted" if cell.accepted else "source" if cell.ends or not cell.used else "row"

"""What tests/data/sources/bad_input.py is made of: readers, the files that they read, and what is expected of a bad one."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
"""Of our field names: id, text. `choices` shows the text as its question."""

GOOD: Rows = [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, {"id": "c", "text": "three"}]
MEND = "data.bad_rows=quarantine"
END = "nothing after it can be read, so mend the source"
JSON_READERS = ("jsonl", "interleaved", "wiki_pages", "choices")
ARROW_READERS = ("parquet", "huggingface")


@dataclass(frozen=True)
class Cell:
    write: Callable[[Path], None]
    """Makes root/x."""
    reason: str
    """Pattern of what is said."""
    place: str = ""
    """Pattern of path and line before it."""
    bad: int = 1
    used: int = 2
    ends: bool = False
    """The rest of the source is lost: an error under every policy."""
    accepted: bool = False
    """Not bad: exit code 0, and `reason` is said on the way."""
    remedy: str = MEND
    data: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    name: str
    holds: str
    encode: Callable[[Rows], bytes] | None
    """Rows → the file; None for a dataset folder."""
    first_line: int
    """Line of the first row."""

    def write(self, root: Path, rows: Rows) -> None:
        if self.encode is None:
            save_dataset(root / "x", pa.table(columns(rows)))
        else:
            (root / "x").write_bytes(self.encode(rows))

    def line(self, number: int) -> str:
        """Pattern of the place of row `number` (from 1)."""
        if self.name == "parquet":
            return f"/x:row group 0, row {number}: "
        return f"x:row {number}: " if self.name == "huggingface" else f"/x:{self.first_line + number - 1}: "

    @property
    def json(self) -> bool:
        return self.name in JSON_READERS

    @property
    def arrow(self) -> bool:
        return self.name in ARROW_READERS


def members(values: dict[str, Any]) -> str:
    """A JSON object whose values may be JSON already (Text)."""
    return "{" + ", ".join(f"{json.dumps(k)}: {v if isinstance(v, Text) else json.dumps(v)}" for k, v in values.items()) + "}"


class Text(str):
    """JSON as it is to stand in the file."""


def jsonl(rows: Rows) -> bytes:
    return "".join(members(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def listed(element: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Rows], bytes]:
    return lambda rows: ("[\n" + ",\n".join(members(element(row)) for row in rows) + "\n]\n").encode("utf-8", "surrogatepass")


def interleaved(row: dict[str, Any]) -> dict[str, Any]:
    return {"type": "doc", "document": Text(members(row))}


def page(row: dict[str, Any]) -> dict[str, Any]:
    return {{"text": "evidence_text"}.get(k, k): v for k, v in row.items()}


def choice(row: dict[str, Any]) -> dict[str, Any]:
    return {{"text": "question"}.get(k, k): v for k, v in row.items()} | {"choices": ["x", "y"], "answer": "A"}


def csv(rows: Rows) -> bytes:
    return ("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows)).encode("utf-8", "surrogatepass")


def columns(rows: Rows) -> dict[str, Any]:
    return {name: pa.array([row.get(name) for row in rows]) for name in rows[0]}


def parquet(rows: Rows) -> bytes:
    return parquet_bytes(pa.table(columns(rows)))


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="NONE", use_dictionary=False)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def save_dataset(folder: Path, table: pa.Table) -> None:
    """As datasets.save_to_disk leaves it, without importing the library seven times a case."""
    folder.mkdir()
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_fingerprint": "0",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


READERS = {
    reader.name: reader
    for reader in (
        Reader("jsonl", "documents", jsonl, 1),
        Reader("csv", "documents", csv, 2),
        Reader("parquet", "documents", parquet, 1),
        Reader("huggingface", "documents", None, 1),
        Reader("interleaved", "documents", listed(interleaved), 2),
        Reader("wiki_pages", "documents", listed(page), 2),
        Reader("choices", "choices", listed(choice), 2),
    )
}


def subject(reader: Reader) -> str:
    """What the text is called in this reader's messages."""
    return "question" if reader.holds == "choices" else "text"


def second(reader: Reader, reason: str, **values: Any) -> Cell:
    """The second of three rows has these values."""
    rows = [GOOD[0], {"id": "b", "text": "two"} | values, GOOD[2]]
    return Cell(lambda root: reader.write(root, rows), reason, reader.line(2))


def edited(reader: Reader, edit: Callable[[bytes], bytes], reason: str, **options: Any) -> Cell:
    """The good file after `edit`."""
    assert reader.encode is not None
    content = edit(reader.encode(GOOD))
    return Cell(lambda root: (root / "x").write_bytes(content) and None, reason, **options)


def table_cell(reader: Reader, table: pa.Table, reason: str, **options: Any) -> Cell:
    """A Parquet file or dataset folder of this table."""
    write = (lambda root: save_dataset(root / "x", table)) if reader.encode is None else (lambda root: put(root, parquet_bytes(table)))
    return Cell(write, reason, **options)


def put(root: Path, content: bytes) -> None:
    (root / "x").write_bytes(content)

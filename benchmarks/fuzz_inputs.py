"""Broken inputs for every reader, made by rule from good ones."""

import functools
import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.build import office_files

KEYS = [
    "id",
    "text",
    "question",
    "answer",
    "answers",
    "doc_id",
    "choices",
    "type",
    "document",
    "evidence_text",
    "qa_pairs",
    "title",
    "level",
]


SCALARS: list[Any] = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), "", " ", "a", "b", "doc", "qna", "A", "</s>", "<T - Wikipedia 1> x", "\ud83d", "é", "\0", "x" * 300, 10**30,
]  # fmt: skip


PIECES = [
    b"\xff", b"\xed\xa0\xbd", b"\xef\xbb\xbf", b"\0", b"\n", b"\r", b'"', b"'", b",", b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud83d", b"NaN", b"null",
    b"-", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"\t", b"- ", b"? ", b"|", b"#", b"%",
]  # fmt: skip


EXPERIMENT = b"""name: x
data: {bios: {train_people: 5}}
model:
  tiny: {hidden_size: 96}
dials: {batch_items: 8}
arms:
  pit: {preset: pit, dials: {epochs_pit: 2}}
  own:
    stages:
      - {mix: {train_documents: 1}, epochs: 1, batch_items: 4, rate: 1e-3}
"""


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth < 3 and kind < 0.15:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 3 and kind < 0.35:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(5))}
    return rng.choice(SCALARS)


def good_rows(format: str) -> list[dict[str, Any]]:
    if format == "choices":
        return [{"question": f"q{n}", "choices": ["x", "y"], "answer": "B"} for n in range(3)]
    if format == "interleaved":
        return [{"type": "doc", "id": n, "document": f"text {n}"} for n in range(2)] + [{"type": "qna", "question": "q", "answer": "a"}]
    if format == "wiki_pages":
        return [{"evidence_text": f"<T - Wikipedia {n}> text", "qa_pairs": [{"text": "q", "output": f"a{n}"}]} for n in range(2)]
    return [{"id": str(n), "text": f"text {n}", "question": f"q{n}", "answer": "a"} for n in range(3)]


def rows_of(rng: random.Random, format: str) -> list[Any]:
    """Good rows of which some have other values, or none of our rows at all."""
    rows: list[Any] = [dict(row) for row in good_rows(format)]
    for _ in range(rng.randrange(4)):
        row = rng.choice(rows)
        if rng.random() < 0.2:
            rows[rows.index(row)] = value(rng)
        elif isinstance(row, dict):
            row[rng.choice([*row, *KEYS])] = value(rng)
    return rows


def edited(rng: random.Random, content: bytes) -> bytes:
    """Up to three edits: a piece put in or over, a slice taken out or doubled, a cut, a flipped bit."""
    changed = bytearray(content)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at : at + rng.randrange(3)] = rng.choice(PIECES)
        elif kind == 1:
            del changed[at : at + rng.randrange(12)]
        elif kind == 2:
            changed[at:at] = changed[max(0, at - 20) : at]
        elif kind == 3 and rng.random() < 0.3:
            del changed[at:]
        elif changed and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def table(rng: random.Random, rows: list[Any]) -> pa.Table:
    """Columns of the first kind of value that each key has; what does not fit becomes null."""
    dicts = [row for row in rows if isinstance(row, dict)] or [{}]
    columns = {}
    for name in dict.fromkeys(key for row in dicts for key in row):
        cells = [row.get(name) for row in dicts]
        try:
            columns[name] = pa.array(cells)
        except (pa.ArrowException, OverflowError, UnicodeError):
            raw = [repr(cell).encode() + b"\xff" * rng.randrange(2) for cell in cells]
            columns[name] = pa.array(raw, pa.binary()).view(pa.string())
    return pa.table(columns)


def text_file(path: Path, rng: random.Random, format: str) -> bytes:
    rows = rows_of(rng, format)
    if format in ("csv", "csv.gz"):
        mark = rng.choice(",,,;\t|")
        lines = [mark.join(("id", "text", "question", "answers"))] + [
            mark.join(map(str, row.values())) if isinstance(row, dict) else str(row) for row in rows
        ]
        content = "\n".join(lines).encode("utf-16" if rng.random() < 0.05 else "utf-8", "surrogatepass")
    elif format in ("jsonl", "jsonl.gz") or (format == "json" and rng.random() < 0.3):
        content = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    else:
        content = json.dumps(rows, indent=rng.choice([None, 0])).encode("utf-8", "surrogatepass")
    content = edited(rng, content)
    if format.endswith(".gz"):
        packed = gzip.compress(content, 1)
        path.write_bytes(edited(rng, packed) if rng.random() < 0.3 else packed)
    else:
        path.write_bytes(content)
    return content


def parquet_file(path: Path, rng: random.Random, format: str) -> bytes:
    sink = pa.BufferOutputStream()
    made, options = table(rng, rows_of(rng, format)), {"compression": rng.choice(["NONE", "SNAPPY"]), "use_dictionary": rng.random() < 0.5}
    try:
        pq.write_table(made, sink, **options)
    except pa.ArrowNotImplementedError:  # Parquet has no struct without fields
        pq.write_table(made.select([field.name for field in made.schema if pa.types.is_string(field.type)]), sink, **options)
    content = edited(rng, sink.getvalue().to_pybytes())
    path.write_bytes(content)
    return content


def workbook(path: Path, rng: random.Random, format: str) -> bytes:
    rows = [row for row in rows_of(rng, format) if isinstance(row, dict)]
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell if isinstance(cell, int | float | str | None) else json.dumps(cell) for cell in map(row.get, names)] for row in rows]
    plain = [[re.sub(r"[\x00-\x1f\ud800-\udfff]", "", cell) if isinstance(cell, str) else cell for cell in row] for row in cells]
    sheets = {"A": [names, *plain], **({"B": plain} if rng.random() < 0.1 else {})}
    content = edited_archive(rng, office_files.xlsx(sheets))
    path.write_bytes(content)
    return content


def dataset_folder(path: Path, rng: random.Random, format: str) -> bytes:
    path.mkdir(exist_ok=True)
    made = table(rng, rows_of(rng, format))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    state: dict[str, Any] = {"_data_files": [{"filename": "d.arrow"}], "_fingerprint": "0", "_format_kwargs": {}, "_split": None}
    state |= {"_format_columns": None, "_format_type": None, "_output_all_columns": False}
    which = rng.randrange(3)
    files = {"d.arrow": sink.getvalue().to_pybytes(), "state.json": json.dumps(state).encode(), "dataset_info.json": b"{}"}
    name = list(files)[which]
    files[name] = edited(rng, files[name])
    for name, content in files.items():
        (path / name).write_bytes(content)
    return files["d.arrow"]


MAKERS: dict[str, Callable[[Path, random.Random, str], bytes]] = {
    "jsonl": text_file,
    "csv": text_file,
    "interleaved": text_file,
    "wiki_pages": text_file,
    "choices": text_file,
    "json": text_file,
    "jsonl.gz": text_file,
    "csv.gz": text_file,
    "xlsx": workbook,
    "parquet": parquet_file,
    "huggingface": dataset_folder,
}


HOLDS = {"interleaved": ["both", "questions", "documents"], "wiki_pages": ["both", "questions", "documents"], "choices": ["choices"]}


TABLES = ["documents", "questions", "choices"]


def edited_archive(rng: random.Random, good: bytes) -> bytes:
    """A zip archive with its bytes edited, or some of its parts."""
    if rng.random() < 0.3:
        return edited(rng, good)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.randrange(3)):
        name = rng.choice(list(parts))
        parts[name] = edited(rng, bytes(parts[name]))  # type: ignore[arg-type]
    if rng.random() < 0.2:
        parts.pop(rng.choice(list(parts)))
    return office_files.zipped(parts)


def parts_of(format: str, rng: random.Random) -> bytes:
    """A good file for data build, edited."""
    good = GOOD_FILES[format]()
    return edited_archive(rng, good) if good.startswith(b"PK") else edited(rng, good)


ENDING = {"markdown": "md", "text": "txt", "code": "py", "table": "jsonl"}


CELLS: list[tuple[str, Any]] = [("markdown", ["# Tides\n", "High."]), ("code", "def tide():\n    return 3\n")]


PAGE = """<html><head><meta charset="utf-8"><title>Cranes</title></head><body><nav>Menu</nav><form><h1>Cranes</h1><p>10<sup>30</sup> H<sub>2</sub>O
<table><tr><th rowspan=2>a<th colspan=2>b<tr><td>1<td>2</table><pre>    x = 1\n```</pre><ul><li>one<li>two</ul><aside>x</aside></form></body></html>"""


GOOD_FILES: dict[str, Callable[[], bytes]] = {
    "html": PAGE.encode,
    "markdown": lambda: (
        "---\ntitle: >-\n  Cranes\ntags: [a, b]\n---\n# Cranes\n\n" + "words and\n\n```py\n# x\n    y\n```\n\n" * 12
    ).encode(),
    "text": lambda: ("Cranes\n\n" + "They lift forty tonnes. " * 30).encode(),
    "code": lambda: ("class A:\n" + "    def f(self):\n        return 1\n\n" * 20).encode(),
    "table": lambda: b"".join(json.dumps({"body": f"text {n} " * 9, "title": f"T{n}"}).encode() + b"\n" for n in range(3)),
    "docx": lambda: office_files.docx(office_files.paragraph("Cranes", "Title") + office_files.paragraph("They lift.")),
    "pptx": functools.cache(lambda: office_files.pptx([("Cranes", "They lift."), ("More", "x")])),
    "ipynb": lambda: office_files.ipynb(CELLS),
    "epub": lambda: office_files.epub({"a": "<h1>One</h1><p>It lifts.</p>", "b": "<p>Two</p>"}),
}

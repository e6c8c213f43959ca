"""What the tests of readers share: files read as a source of an experiment, and what came of their rows."""

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.config import Source
from data.readers import read_source
from data.records import Refusal
from data.sources.raw_rows import Row


def packed(content: bytes) -> bytes:
    """gzip without the time of day: what tests are called must be the same in both of the suite's processes."""
    return gzip.compress(content, mtime=0)


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


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, **options)

"""Records as Parquet with plain columns: what a build leaves, and what data/sources/tables.py reads."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

Holds = Literal["documents", "questions", "choices"]

_ROWS_A_GROUP = 4096
"""Held in memory until they are written: with documents of 4,096 characters about 20 MB."""
_FROM = ("model", "prompts", "reply")
_COLUMNS: dict[Holds, dict[str, pa.DataType]] = {
    "documents": {
        **{name: pa.string() for name in ("id", "text", "title", "url", "date", "domain", "page")},
        "part": pa.int64(),
        **{name: pa.string() for name in ("format", "language", "of", "method", "way", "about", *_FROM)},
        "seed": pa.int64(),
        "quality": pa.float64(),
    },
    "questions": {
        **{name: pa.string() for name in ("id", "doc_id", "question")},
        "answers": pa.list_(pa.string()),
        **{name: pa.string() for name in ("level", "method", "way", *_FROM)},
        "seed": pa.int64(),
    },
    "choices": {
        **{name: pa.string() for name in ("id", "doc_id", "question")},
        "choices": pa.list_(pa.string()),
        "answer_index": pa.int64(),
        **{name: pa.string() for name in ("level", *_FROM)},
        "seed": pa.int64(),
    },
}
"""`of`, `method`, `way`, `about`: of what a model wrote, the document it was written from, how, in which form, and on which names. `quality`: 1 of
a document that was read, 0 of one that was written, so that `best_share` of a stage can leave these out. `model`, `prompts`, `reply`, `seed`: who wrote a row,
by which templates, in which reply (answers/<reply>.json)."""


class RecordFile:
    """Rows of one kind into one file, row group by row group; a row without a column has null there. Use as a context manager.

    The same rows make the same bytes with the same pyarrow.
    """

    def __init__(self, path: Path, holds: Holds) -> None:
        self._schema = pa.schema(list(_COLUMNS[holds].items()))
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self.written = 0

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        assert row.keys() <= set(self._schema.names), row.keys() - set(self._schema.names)
        self._rows.append(row)
        self.written += 1
        if len(self._rows) == _ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def record_file(out: Path, split: str, what: str) -> Path:
    """what: documents, questions, choices, rewrites (documents too), or asked (questions of a method)."""
    return out / f"{split}_{what}.parquet"


def write_rows(path: Path, holds: Holds, rows: Iterable[dict[str, Any]]) -> int:
    """Returns how many; no file where there are none."""
    path.unlink(missing_ok=True)
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return 0
    with RecordFile(path, holds) as file:
        file.add(first)
        for row in rows:
            file.add(row)
    return file.written


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """What write_rows has written, row by row; nothing where there is no file."""
    if path.is_file():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()

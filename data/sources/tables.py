"""Rows of tables: CSV and Parquet (row group by row group, plain types only)."""

import base64
import csv
import itertools
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from data.config import Source
from data.ground.opened import Lines, open_rows
from data.ground.strict_json import MAX_ROW_BYTES, JsonFault, StrictDecoder, bounded_lines, decode_line
from data.sources.raw_rows import Fault, Raw
from data.sources.validate import header_fault, needed_fields, used_columns

_BATCH_ROWS = 1024
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{28,}")
_EXTENSION = b"ARROW:extension:name"
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r"sep=(.)")


class _CsvLines:
    """Lines for csv.reader; bytes that are no UTF-8 become surrogates, so that the row (not the file) is refused."""

    def __init__(self, file: Lines):
        self._lines = bounded_lines(file)
        self.too_long: set[int] = set()

    def __iter__(self) -> Iterator[str]:
        for number, line, too_long in self._lines:
            if too_long:
                self.too_long.add(number)
                line = line[:60].replace(b'"', b" ") + b"\n"
            yield line.decode("utf-8", "surrogateescape")


def csv_rows(path: Path, source: Source) -> Iterator[Raw | Fault]:
    """Each row as texts by the header's names. A row may run over several lines; its place is the first."""
    csv.field_size_limit(MAX_ROW_BYTES)
    separator, before = separator_of(path, {*source.columns.values(), *(source.columns.get(name, name) for name in needed_fields(source))})
    with open_rows(path) as file:
        lines = _CsvLines(file)
        rows = csv.reader(itertools.islice(lines, before, None), delimiter=separator, strict=True)
        header: list[str] | None = None
        while True:
            line = before + rows.line_num + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:
                fault = _csv_fault(error, line, before + rows.line_num, header is None)
                yield fault
                if fault.ends:
                    return
                continue
            if cells is None:
                return
            if header is None and cells:
                asked = source.columns.values()
                header = cells = [cell if cell in asked else cell.strip() for cell in cells]
                if fault_in_header := header_fault(cells, source):
                    yield Fault(f":{line}", fault_in_header, ",".join(cells), ends=True)
                    return
            elif cells:
                assert header is not None
                last = before + rows.line_num
                yield _csv_row(header, cells, line, bool(lines.too_long) and not lines.too_long.isdisjoint(range(line, last + 1)))


def separator_of(path: Path, wanted: Collection[str]) -> tuple[str, int]:
    """(what stands between the cells, lines before the header). Said by the ending (.tsv), by a first line `sep=;` as Excel writes it, or by the
    header: of `,` `;` tab and `|` that which yields most of the wanted columns, then most columns; the comma where nothing speaks against it."""
    with open_rows(path) as file:
        first = next((line.decode("utf-8", "replace") for _, line, too_long in bounded_lines(file) if line.strip() and not too_long), "")
    if said := _SEPARATOR_LINE.fullmatch(first.rstrip("\r\n")):
        return said[1], 1
    if path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
        return "\t", 0
    found = {mark: header_cells(first, mark) for mark in _SEPARATORS}
    return max(_SEPARATORS, key=lambda mark: (sum(name in wanted for name in found[mark]), len(found[mark]))), 0


def header_cells(line: str, separator: str) -> list[str]:
    """Empty where the reader will say what is wrong with it."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def _csv_fault(error: csv.Error, first: int, last: int, in_header: bool) -> Fault:
    """A fault over several lines has swallowed rows that nobody can count."""
    swallowed = last > first or "field larger" in str(error)
    never_closed = "unexpected end" in str(error)
    reason = "a quote opened here is never closed" if never_closed else f"malformed CSV: {error}"
    if "new-line character" in str(error):
        reason = "lines end with carriage returns alone, as on old Macintoshes; save it anew as CSV UTF-8"
    return Fault(f":{first}", reason, ends=swallowed or in_header)


def _csv_row(header: list[str], cells: list[str], line: int, too_long: bool) -> Raw | Fault:
    place = f":{line}"
    if too_long:
        return Fault(place, f"longer than {MAX_ROW_BYTES >> 20} MB", cells[0])
    if len(cells) != len(header):
        return Fault(place, f"{len(cells)} fields where the header has {len(header)}", ",".join(cells))
    for cell in cells:
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError:
            return Fault(place, "not UTF-8", cell.encode("utf-8", "surrogateescape"))
    return Raw(place, dict(zip(header, cells, strict=True)))


def parquet_rows(path: Path, source: Source) -> Iterator[Raw | Fault]:
    """Each row as plain Python values, of the columns that are used.

    Extension types are refused before pyarrow sees the schema: loading one may run code that the file carries
    (Ray's tensor and pickled-object columns did).
    """
    file = _parquet(path)
    if isinstance(file, Fault):
        yield file
        return
    with file:
        columns = file.schema_arrow.names
        if fault := header_fault(columns, source):
            yield Fault("", fault, ends=True)
            return
        used = used_columns(columns, source)
        for group in range(file.metadata.num_row_groups):
            if fault_in_group := (yield from _group(file, group, used)):
                yield fault_in_group
                return


def _parquet(path: Path) -> pq.ParquetFile | Fault:
    try:
        if parquet_has_extension_types(path):
            return Fault("", "has an Arrow extension type; write it with plain columns (text, numbers, lists)", ends=True)
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return Fault("", "not a readable Parquet file (fake or truncated)", str(error), ends=True)


def parquet_columns(path: Path) -> dict[str, int] | Fault:
    """Each column with the rows in which it is not null, as the footer's statistics say; where they say nothing, all rows."""
    file = _parquet(path)
    if isinstance(file, Fault):
        return file
    with file:
        nulls: Counter[str] = Counter()
        for group in range(file.metadata.num_row_groups):
            for number in range(file.metadata.num_columns):
                column = file.metadata.row_group(group).column(number)
                if column.is_stats_set and column.statistics is not None and column.statistics.has_null_count:
                    nulls[column.path_in_schema] += column.statistics.null_count
        return {name: file.metadata.num_rows - nulls[name] for name in file.schema_arrow.names}


def _group(file: pq.ParquetFile, group: int, columns: list[str]) -> Generator[Raw | Fault, None, Fault | None]:
    row = 0
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            for found in arrow_rows(batch):
                row += 1
                yield replace(found, place=f":row group {group}, row {row}")
    except (pa.ArrowException, OSError) as error:
        return Fault(f":row group {group}", "cannot be read (corrupt or truncated)", str(error), ends=True)
    return None


def arrow_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[Raw | Fault]:
    """Each row as plain Python values, without its place.

    Raises ArrowInvalid where the batch's own offsets lead astray: pyarrow follows them into memory that is not its own.
    """
    sound = all(_column_fault(column) is None for column in batch.columns)
    for index in range(batch.num_rows):
        if not sound and (fault := _row_fault(batch.slice(index, 1))):
            yield fault
        else:
            yield _row(batch, index)


def _column_fault(column: Any) -> str | None:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        return str(error)
    return None


def _row_fault(row: pa.RecordBatch | pa.Table) -> Fault | None:
    for name, column in zip(row.column_names, row.columns, strict=True):
        if reason := _column_fault(column):
            if "UTF8" in reason:
                return Fault("", f"{name} is not UTF-8")
            raise pa.ArrowInvalid(reason)
    return None


def _row(batch: pa.RecordBatch | pa.Table, index: int) -> Raw | Fault:
    values: dict[str, Any] = {}
    for name, column in zip(batch.column_names, batch.columns, strict=True):
        try:
            values[name] = _decoded(column[index].as_py(), column.type)
        except JsonFault as fault:
            return Fault("", f"{name}: {fault.reason}")
        except UnicodeDecodeError:
            return Fault("", f"{name} is not UTF-8")
        except (pa.ArrowException, ValueError, OverflowError) as error:  # a date beyond Python's
            return Fault("", f"{name} cannot be read", str(error))
    return Raw("", values)


def _decoded(value: Any, type: Any) -> Any:
    """Of a column that `datasets` has made JSON of, because its values are of several kinds, the values: not their JSON."""
    if value is None or not (pa.types.is_nested(type) or isinstance(type, pa.BaseExtensionType)):
        return value
    if getattr(type, "extension_name", "") == "arrow.json":
        return decode_line(value, StrictDecoder())
    if pa.types.is_struct(type):
        return {field.name: _decoded(value[field.name], field.type) for field in type}
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return [_decoded(entry, type.value_type) for entry in value]
    return value


def arrow_file_has_extension_types(path: Path) -> bool:
    """Of an Arrow stream or file: looks into the bytes of its schema, which comes first, before pyarrow loads any type."""
    with path.open("rb") as file:
        start = file.read(8)
        if start[:6] == b"ARROW1":
            start = file.read(8)
        length = int.from_bytes(start[4:8] if start[:4] == b"\xff\xff\xff\xff" else start[:4], "little")
        return _EXTENSION in file.read(length)


def parquet_has_extension_types(path: Path) -> bool:
    """Looks for the mark in the footer's bytes: opening the file with pyarrow would already load the types.

    The footer holds the Arrow schema in base64. Every run of such characters is tried at each offset of four, because
    the byte before it (a length) may look like one of them.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        if length > size:
            return False  # no Parquet file, as pyarrow will say
        file.seek(max(0, size - 8 - length))
        footer = file.read(length)
    runs = (match[0][shift:] for match in _BASE64.finditer(footer) for shift in range(4))
    return any(_EXTENSION in base64.b64decode(run[: len(run) // 4 * 4]) for run in runs)

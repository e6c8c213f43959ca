"""Workbooks (.xlsx) as tables, by openpyxl, row by row: one sheet is read, the first row with anything in it is its header."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.config import Source
from data.ground.archive import NoDocument, open_archive
from data.sources.raw_rows import Fault, Raw, excerpt
from data.sources.validate import header_fault

_MOST_UNPACKED = 256 << 20
"""Texts that cells share are held: up to three times as many bytes of memory. A larger table is a CSV."""
_MOST_ROWS = 1 << 20
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell [^>]*?ref="([A-Z]{1,3}\d{1,7}:[A-Z]{1,3}\d{1,7})"')
_LONGEST_TAG = 200
_FAILED = {"#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A"}
"""What a formula that came to nothing leaves in its cell."""


def sheet_names(path: Path) -> list[str] | Fault:
    """The visible sheets that hold anything."""
    try:
        with _workbook(path) as book:
            return [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible" and next(_filled(sheet), None)]
    except Exception as error:  # whatever openpyxl makes of a broken file
        return _unreadable(error)


def xlsx_rows(path: Path, source: Source) -> Iterator[Raw | Fault]:
    """Each row of the sheet that is called source.configuration, else of the only one with rows; values as the program stores them: text,
    numbers, dates, of formulas what they had come to when the file was saved. Places are the program's own row numbers."""
    names = sheet_names(path)
    chosen = names if isinstance(names, Fault) else _chosen(names, source.configuration)
    if isinstance(chosen, Fault):
        yield chosen
        return
    if chosen is None:
        return
    assert not isinstance(names, Fault)
    try:
        with _workbook(path) as book:
            yield from _rows(
                _with_merged(_filled(book[chosen]), _merged(book, book[chosen])), source, f":{chosen}!" if len(names) > 1 else ":"
            )
    except Exception as error:
        yield _unreadable(error)


@contextmanager
def _workbook(path: Path) -> Iterator[Any]:
    import openpyxl

    warnings.filterwarnings("ignore", module="openpyxl")  # of styles and extensions, which nothing here reads
    open_archive(path, _MOST_UNPACKED).close()
    with path.open("rb") as file:  # of a path openpyxl would judge the ending
        yield openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)


def _chosen(names: list[str], wanted: str | None) -> str | Fault | None:
    shown = excerpt(", ".join(names), 200)
    if wanted is not None:
        return wanted if wanted in names else Fault("", f"no sheet {wanted!a} with rows in it (sheets: {shown or 'none'})", ends=True)
    if len(names) > 1:
        return Fault("", f"{len(names)} sheets have rows ({shown}); name one with configuration: {names[0]}", ends=True)
    return next(iter(names), None)


def _filled(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """(number, cells) of every row that is not empty, without empty cells at its end. What the file says of the sheet's size is not believed."""
    sheet.reset_dimensions()
    for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
        if number > _MOST_ROWS:
            raise NoDocument(f"has more than {_MOST_ROWS:,} rows, which no sheet can hold")
        last = max((n for n, cell in enumerate(cells, 1) if cell not in (None, "")), default=0)
        if last:
            yield number, list(cells[:last])


def _with_merged(rows: Iterator[tuple[int, list[Any]]], merged: dict[int, list[tuple[int, int]]]) -> Iterator[tuple[int, list[Any]]]:
    """Rows in which a cell that is merged over several of them stands in each; the file has it in the first alone."""
    held: dict[int, tuple[int, Any]] = {}  # column → (last row, value)
    for number, cells in rows:
        held = {column: over for column, over in held.items() if over[0] >= number}
        for column, (_, value) in held.items():
            cells += [None] * (column - len(cells))
            cells[column - 1] = value
        held |= {column: (last, cells[column - 1]) for column, last in merged.get(number, []) if column <= len(cells)}
        yield number, cells


def _merged(book: Any, sheet: Any) -> dict[int, list[tuple[int, int]]]:
    """First row → (column, last row) of the cells that are merged over rows: they stand behind the rows, where no reader of rows looks."""
    from openpyxl.utils import range_boundaries

    found: dict[int, list[tuple[int, int]]] = {}
    with book._archive.open(sheet._worksheet_path) as file:
        tail = b""
        while part := file.read(1 << 20):
            for match in _MERGED.finditer(tail + part):
                column, first, _, last = range_boundaries(match[1].decode())
                if last > first:
                    found.setdefault(first, []).append((column, last))
            tail = (tail + part)[-_LONGEST_TAG:]
    return {first: sorted(set(cells)) for first, cells in found.items()}


def _rows(rows: Iterator[tuple[int, list[Any]]], source: Source, place: str) -> Iterator[Raw | Fault]:
    header: list[str] | None = None
    for number, cells in rows:
        if header is None:
            header = [str(cell if cell is not None else "").strip() for cell in cells]
            if fault := header_fault(header, source):
                yield Fault(f"{place}{number}", fault, ",".join(header), ends=True)
                return
            continue
        shown = ",".join(str(cell) for cell in cells)
        if len(cells) > len(header):
            yield Fault(f"{place}{number}", f"{len(cells)} cells where the header has {len(header)}", shown)
        elif failed := next((cell for cell in cells if isinstance(cell, str) and cell in _FAILED), None):
            yield Fault(f"{place}{number}", f"a cell is {failed}: its formula came to nothing; mend it, or write the value", shown)
        else:
            yield Raw(f"{place}{number}", dict(zip(header, cells + [None] * (len(header) - len(cells)), strict=True)))


def _unreadable(error: Exception) -> Fault:
    if isinstance(error, NoDocument):
        return Fault("", str(error), ends=True)
    if isinstance(error, ImportError):
        return Fault("", "workbooks need openpyxl, which this environment lacks; run `make setup`, or save it as .csv", ends=True)
    return Fault("", f"not a readable workbook ({type(error).__name__}); save it anew, or as .csv", str(error), ends=True)

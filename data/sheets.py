"""Workbooks (.xlsx) as tables, by openpyxl, row by row: one sheet is read, the first row with anything in it is its header."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.archive import NoDocument, open_archive
from data.config import Source
from data.validate import Fault, Raw, excerpt, header_fault

_MOST_UNPACKED = 256 << 20
"""Texts that cells share are held: up to three times as many bytes of memory. A larger table is a CSV."""
_MOST_ROWS = 1 << 20
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
            yield from _rows(book[chosen], source, f":{chosen}!" if len(names) > 1 else ":")
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


def _rows(sheet: Any, source: Source, place: str) -> Iterator[Raw | Fault]:
    header: list[str] | None = None
    for number, cells in _filled(sheet):
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

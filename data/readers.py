"""Every format → records with their places, and the rows that cannot be used with the reason.

Row by row for JSONL, CSV and Parquet: memory does not grow with the file. The JSON lists (interleaved, wiki_pages,
choices) are read whole. Files are read here and not by Ray Data, whose readers name neither file nor line.
"""

import difflib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from console import UserError
from data.config import DataConfig, Source
from data.ground.formats import SAVED_AS
from data.ground.opened import Damaged, open_rows
from data.ground.strict_json import MAX_ROW_BYTES, JsonFault, StrictDecoder, bounded_lines, decode_line
from data.records import Record, Refusal
from data.sources.nested import list_rows, nested_rows
from data.sources.raw_rows import BadRow, Fault, Raw, Row, excerpt, refusal
from data.sources.sheets import xlsx_rows
from data.sources.tables import arrow_file_has_extension_types, arrow_rows, csv_rows, parquet_columns, parquet_rows
from data.sources.validate import FIELDS, Holds, RowReader, header_fault, used_columns

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NESTED = ("interleaved", "wiki_pages")


def read_source(source: Source, root: str | Path | None, notes: Counter[str]) -> Iterator[Row | Refusal]:
    """Every row of a source, in the order of the file: used (Row) or not (Refusal).

    In `interleaved` and `wiki_pages` each document and each question is a row of its own; a source that `holds` only
    one of the two skips the other, counted in `notes`. Ids: column `id` (or Source.columns); numbers become text; a
    wiki page falls back on its `<Title - Wikipedia id>` header, which is cut from the text; a document without any is
    named `path:line`. Answers: `answer` or `answers`, a text or a list of texts. An `interleaved` document may be
    {title, description}: its text is both, on lines of their own.

    notes: counts what was done to rows that are used.
    Raises UserError where the source itself is at fault: no such file, out of data.root, columns that mean nothing.
    """
    check_source(source)
    if source.format == "huggingface":
        yield from _flat(_huggingface(source, root), source, source.path, notes)
        return
    path = resolve(source, root)
    if path.stat().st_size == 0:
        notes["empty file"] += 1
        return
    shown = str(path)
    if source.format in _NESTED:
        yield from nested_rows(path, source, shown, notes)
    else:
        yield from _flat(_READERS[source.format](path, source), source, shown, notes)


def check_source(source: Source) -> None:
    """Raises UserError for a combination of settings that means nothing."""
    nested = source.format in _NESTED
    if source.holds == "both" and not nested:
        raise UserError(f"data.sources: {source.path}: holds: both needs format interleaved or wiki_pages, not {source.format}")
    if (source.format == "choices" or nested) and (source.holds == "choices") == nested:
        raise UserError(f"data.sources: {source.path}: format {source.format} cannot hold {source.holds}")
    if source.stream and source.name:
        raise UserError(f"data.sources: {source.path}: a streamed source keeps no names; leave out `name` or `stream: true`")
    if source.stream and (source.holds != "documents" or source.split == "test" or nested):
        raise UserError(
            f"data.sources: {source.path}: stream: true is for documents of train or replay in jsonl, json, csv, xlsx, parquet or huggingface; "
            "questions and the exam are held in memory"
        )
    if source.format != "huggingface" and (source.hub_split or (source.configuration and source.format != "xlsx")):
        what = "hub_split is" if source.hub_split else "configuration is of a workbook's sheets, or"
        raise UserError(f"data.sources: {source.path}: {what} of format huggingface, not {source.format}")
    if source.format != "huggingface" and (remedy := SAVED_AS.get(Path(source.path).suffix.lower())):
        raise UserError(f"data.sources: {source.path}: no reader for {Path(source.path).suffix}; {remedy}")
    known = FIELDS["documents"] + FIELDS["questions"] if source.holds == "both" else FIELDS[source.holds]
    for name in source.columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"data.sources: {source.path}: columns: {name} is no field of {source.holds}; {hint}")
    if nested and source.columns:
        raise UserError(f"data.sources: {source.path}: format {source.format} has fixed names; columns: does not apply")


def check_there(config: DataConfig) -> None:
    """UserError where settings of a source mean nothing, or its file is not there: what is found without reading any."""
    for source in config.sources:
        check_source(source)
        if source.format != "huggingface" and config.root is not None:
            resolve(source, config.root)


def resolve(source: Source, root: str | Path | None) -> Path:
    """The file of a source. Raises UserError if it is missing, not a regular file, or outside data.root (`..`, symlinks)."""
    path = _inside(source, root)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # a FIFO would wait for ever
            raise UserError(f"{path}: not a regular file")
        with path.open("rb"):
            return path
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _inside(source: Source, root: str | Path | None) -> Path:
    if root is None:
        raise UserError("data.root: missing: the folder of data.sources, e.g. data.root=DIR")
    path = Path(root, source.path)
    try:
        inside = path.resolve().is_relative_to(Path(root).resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL in the name
        raise UserError(f"data.sources: {source.path!r}: no usable path") from None
    if not inside:
        raise UserError(f"{path}: leads out of data.root ({root}); copy the file below it or set data.root higher")
    return path


def filled_columns(path: Path, source: Source) -> dict[str, int] | Refusal:
    """Of a table's columns the number of rows in which they hold something, in the order in which they occur; costs a pass over the file.
    (Of Parquet by the file's own statistics.) A Refusal where it is no table of rows."""
    if source.format == "parquet":
        found = parquet_columns(path)
        return found if isinstance(found, dict) else refusal(str(path), found)
    counts: Counter[str] = Counter()
    last: Fault | None = None
    for row in _whole(_READERS[source.format](path, source.model_copy(update={"holds": "both"}))):
        if isinstance(row, Fault):
            last = row
        elif isinstance(row.values, dict):
            counts.update({str(name): int(value not in (None, "", [], {})) for name, value in row.values.items()})
    if counts:
        return dict(counts)
    return refusal(str(path), last) if last else Refusal(str(path), "no row that is an object {…}", by_rule=source.format == "json")


def _flat(rows: Iterable[Raw | Fault], source: Source, shown: str, notes: Counter[str]) -> Iterator[Row | Refusal]:
    assert source.holds != "both"
    reader = RowReader(source.columns, notes, source.numbers == "text", source.format in ("csv", "xlsx"))
    for row in _whole(rows):
        if isinstance(row, Fault):
            yield refusal(shown, row)
            continue
        try:
            yield Row(shown + row.place, _judge(reader, source.holds, row, source.path), source.path + row.place)
        except BadRow as bad:
            yield refusal(shown, Fault(row.place, bad.reason, row.values if bad.value is None else bad.value))


def _whole(rows: Iterable[Raw | Fault]) -> Iterator[Raw | Fault]:
    try:
        yield from rows
    except Damaged as error:
        yield Fault("", str(error), ends=True)


def _judge(reader: RowReader, holds: Holds, row: Raw, path: str) -> Record:
    if not isinstance(row.values, dict):
        raise BadRow("a row must be an object {…}", row.values)
    return reader.record(holds, row.values, path + row.place)


def _jsonl(path: Path, source: Source) -> Iterator[Raw | Fault]:
    decoder = StrictDecoder()
    with open_rows(path) as file:
        for number, line, too_long in bounded_lines(file):
            place = f":{number}"
            if too_long:
                yield Fault(place, f"longer than {MAX_ROW_BYTES >> 20} MB", line)
            elif line.strip():
                yield _json_line(line, place, decoder)


def _json(path: Path, source: Source) -> Iterator[Raw | Fault]:
    """One list of objects, or an object a line, which many tools call .json too."""
    with open_rows(path) as file:
        first = next((line.lstrip() for _, line, _ in bounded_lines(file) if line.strip()), b"")
    if first.startswith(b"["):
        yield from list_rows(path)
    elif first.rstrip() == b"{":
        yield Fault("", "one object over several lines; expected one list of objects [{…}, …], or an object a line", first, ends=True)
    else:
        yield from _jsonl(path, source)


def _json_line(line: bytes, place: str, decoder: StrictDecoder) -> Raw | Fault:
    try:
        text = line.decode("utf-8")
        return Raw(place, decode_line(text, decoder))
    except UnicodeDecodeError as error:
        return Fault(place, f"not UTF-8 at byte {error.start + 1}", line)
    except JsonFault as fault:
        if not fault.broken:
            return Fault(place, fault.reason, text)
        if not line.endswith(b"\n") and fault.position >= len(text.rstrip()):
            return Fault(place, "truncated: the file ends inside this row", text[-60:])
        cut_off = " (the last line; was the file cut off?)" if not line.endswith(b"\n") else ""
        at = f" at column {fault.position + 1}" if fault.position >= 0 else ""
        around = text[max(0, fault.position - 30) : fault.position + 30] if fault.position >= 0 else text
        return Fault(place, f"{fault.reason}{at}{cut_off}", around)


_READERS: dict[str, Callable[[Path, Source], Iterator[Raw | Fault]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": csv_rows,
    "xlsx": xlsx_rows,
    "parquet": parquet_rows,
    "choices": lambda path, _: list_rows(path),
}
"""Of formats with a record a row."""


def _huggingface(source: Source, root: str | Path | None) -> Iterator[Raw | Fault]:
    """A local dataset folder below data.root, else a hub id. Never runs a dataset's own code."""
    local = root is not None and _is_folder(source, root)
    if not local and (not _HUB_ID.fullmatch(source.path) or ".." in source.path or Path(source.path).exists()):
        # load_dataset would take a folder of that name in the working directory for the dataset
        raise UserError(f"data.sources: {source.path}: neither a dataset folder below data.root nor a hub id such as owner/name")
    if local and (fault := _folder_fault(_inside(source, root), root)):
        raise UserError(f"data.sources: {fault}")
    if local and source.configuration:
        raise UserError(f"data.sources: {source.path}: configuration is of a hub data set, and this is a saved one")
    import datasets  # type: ignore[import-untyped]

    try:
        loaded = datasets.load_from_disk(str(_inside(source, root))) if local else datasets.load_dataset(source.path, source.configuration)
    except Exception as error:  # whatever the library raises, the remedy is the user's
        unnamed = "config" in str(error).lower() and not source.configuration and not local
        remedy = "name one with configuration: NAME" if unnamed else "save or fetch the dataset again"
        raise UserError(f"data.sources: {source.path}: not loaded: {excerpt(str(error), 200)}; {remedy}") from None
    table = _hub_split(loaded, source)
    if fault := header_fault(table.column_names, source):
        yield Fault("", fault, ends=True)
        return
    # As Arrow: the library's own decoding would open files and images that a row names.
    table = table.select_columns(used_columns(table.column_names, source)).with_format("arrow")
    number = 0
    try:
        for batch in table.iter(batch_size=1000):
            for row in arrow_rows(batch):
                number += 1
                yield replace(row, place=f":row {number}")
    except (pa.ArrowException, OSError) as error:
        yield Fault(f":row {number + 1}", "cannot be read (corrupt or truncated)", str(error), ends=True)


def _folder_fault(folder: Path, root: str | Path | None) -> str | None:
    """Why a dataset folder must not be given to the library: it leads out of data.root, or holds types that may run code."""
    assert root is not None
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(Path(root).resolve()):
            return f"{path}: leads out of data.root ({root}); copy the file below it or set data.root higher"
        if path.name == "state.json" and _names_outside(path):
            return f"{path}: names files outside its folder; save the dataset again"
        if path.suffix == ".arrow" and path.is_file() and arrow_file_has_extension_types(path):
            return f"{path}: has an Arrow extension type; save it with plain columns (text, numbers, lists)"
    return None


def _names_outside(state: Path) -> bool:
    """Whether a dataset's state.json names a file with a folder in it; one that cannot be read is for the library to refuse."""
    try:
        files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        return any(Path(file["filename"]).name != file["filename"] for file in files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_folder(source: Source, root: str | Path) -> bool:
    path = Path(root, source.path)
    return path.is_dir() and _inside(source, root).is_dir()


def _hub_split(loaded: Any, source: Source) -> Any:
    wanted = source.hub_split or source.split
    if not isinstance(loaded, dict):  # a DatasetDict is a dict of splits
        if source.hub_split and source.hub_split != str(loaded.split):
            raise UserError(
                f"data.sources: {source.path}: hub_split: it is one split, {loaded.split or 'without a name'}; leave hub_split out"
            )
        return loaded
    if wanted in loaded:
        return loaded[wanted]
    if len(loaded) == 1 and not source.hub_split:
        return next(iter(loaded.values()))
    names = ", ".join(map(str, loaded))
    raise UserError(f"data.sources: {source.path}: has no split {wanted}, only {names}; name one with hub_split: {next(iter(loaded))}")

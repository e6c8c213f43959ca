"""A folder → its documents on disk, without duplicates; every file, row and document accounted for."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from console import UserError, progress
from data.build.confined import Confined
from data.build.making.account import Account
from data.build.making.chunks import CHARACTERS, cut, too_short
from data.build.making.near import NEAR, Benchmarks, Duplicates
from data.build.pages import Page, read_pages
from data.build.walk import Found, find_files
from data.ground.contents import sha256_of
from data.ground.words import tokens_estimated
from data.records import Document, Refusal

FILES = "files.jsonl"
_SAMPLE_CHARACTERS = 1000
"""Of English prose and code in common tokenizers; estimates only."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    characters: int = CHARACTERS
    near: float = NEAR


@dataclass(frozen=True, slots=True)
class Unit:
    """A page with documents: what goes to one split as a whole."""

    name: str
    date: str | None
    domain: str | None
    documents: int


@dataclass
class Reading:
    """What was read. The documents lie in `path`, one a line, in the order of the files."""

    path: Path
    units: list[Unit] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    tokens: int = 0
    """Estimated."""
    sha256: str = ""

    def documents(self) -> Iterator[Document]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield Document(**json.loads(line))

    def statistics(self) -> dict[str, Any]:
        """Documents by format and language, and their lengths in characters."""
        lengths = np.array(self.lengths or [0])
        quantiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (5, 50, 95)}
        return {
            "documents": len(self.lengths),
            "pages": len(self.units),
            "characters": int(lengths.sum()),
            "tokens_estimated": self.tokens,
            "length": {"least": int(lengths.min()), **quantiles, "most": int(lengths.max())},
            "formats": dict(self.formats.most_common()),
            "languages": dict(self.languages.most_common()),
        }


def read_folder(
    folder: Path, out: Path, options: ReadOptions, account: Account, benchmarks: Benchmarks | None = None, skip: Path | None = None
) -> Reading:
    """Writes work/documents.jsonl and files.jsonl (each file that was read, with its hash) below `out`.

    benchmarks: documents that share a run of words with one are left out. skip: a folder that is not looked into (default: `out`).
    Memory grows with the number of documents (signatures, about 2 kB each), not with their text.
    Raises UserError where nothing is left.
    """
    found: list[Found] = []
    for entry in find_files(folder, options.include, options.exclude, skip=skip or out):
        if isinstance(entry, Refusal):
            account.refuse("files", entry)
        else:
            found.append(entry)
    (out / "work").mkdir(parents=True, exist_ok=True)
    reading = Reading(out / "work" / "documents.jsonl")
    reader = _Reader(folder, options, account, reading, benchmarks)
    with (
        reading.path.open("w", encoding="utf-8") as into,
        (out / FILES).open("w", encoding="utf-8") as log,
        Confined() as confined,
        progress() as bar,
    ):
        task = bar.add_task("files", total=len(found), note="")
        for one in found:
            reader.file(one, confined, into, log)
            bar.update(task, advance=1, note=f"{len(reading.lengths):,} documents")
    reading.sha256 = reader.digest.hexdigest()
    if not reading.units:
        left = ", ".join(f"{count} {reason}" for reason, count in account.left.get("files", Counter()).most_common(3))
        raise UserError(f"{folder}: holds no document that can be used ({account.came['files']} files{': ' + left if left else ''})")
    return reading


class _Reader:
    def __init__(self, folder: Path, options: ReadOptions, account: Account, reading: Reading, benchmarks: Benchmarks | None) -> None:
        self.folder, self.options, self.account, self.reading, self.benchmarks = folder, options, account, reading, benchmarks
        self.duplicates = Duplicates(options.near)
        self.digest = hashlib.sha256()

    def file(self, found: Found, confined: Confined, into: TextIO, log: TextIO) -> None:
        """All pages of a file. A table is read row by row; of every other file there is one page, or a reason."""
        num_pages, language = 0, None
        last: Refusal | None = None
        for page in read_pages(found, self.folder, confined, self.options.columns):
            if isinstance(page, Refusal):
                last = page
                if found.format == "table" and page.where != found.name:
                    self.account.refuse("rows", page)
                continue
            if found.format == "table":
                self.account.use("rows")
            if num_pages == 0:
                language = page.language or language_of(page.text)
            num_pages += 1
            self.page(page, language, into)
        if num_pages == 0:
            reason = last if last is not None and last.where == found.name else Refusal(found.name, "no row that can be used")
            self.account.refuse("files", reason)
            return
        if (
            last is not None and last.where == found.name
        ):  # it broke off: what stood before is used, and one row says what became of the others
            self.account.refuse("rows", last)
        self.account.use("files")
        row = {"file": found.name, "bytes": found.size, "sha256": sha256_of(found.path), "format": found.format, "language": language}
        log.write(json.dumps({**row, "pages": num_pages}, ensure_ascii=False) + "\n")

    def page(self, page: Page, language: str | None, into: TextIO) -> None:
        number = 0
        for document in cut(page, self.options.characters, language):
            if why := self._unwanted(document):
                self.account.leave("documents", document.id, *why)
                continue
            self.account.use("documents")
            number += 1
            line = json.dumps(asdict(document), ensure_ascii=False) + "\n"
            into.write(line)
            self.digest.update(line.encode())
            self.reading.lengths.append(len(document.text))
            self.reading.tokens += tokens_estimated(document.text)
            self.reading.formats[page.format] += 1
            self.reading.languages[language or "unknown"] += 1
        if number:
            self.reading.units.append(Unit(page.name, page.date, page.domain or _top_folder(page.name), number))

    def _unwanted(self, document: Document) -> tuple[str, str] | None:
        if too_short(document):
            return "too short to ask about", ""
        if self.benchmarks is not None and self.benchmarks.holds(document.text):
            return "shares a run of 13 words with a benchmark", ""
        return self.duplicates.add(document.id, document.text)


def language_of(text: str) -> str | None:
    """ISO 639-1 code by the beginning of a text; None where there is nothing to tell it by."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it draws n-grams at random
    try:
        return str(detect(text[:_SAMPLE_CHARACTERS]))
    except LangDetectException:
        return None


def _top_folder(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else "."

"""Documents of a corpus too large to hold: read in passes, of each one kept no more than its id and two hashes.

`stream: true` on a source takes this way. The first pass judges every row as any other source's (data/readers.py) and applies the
rules of data/load.py that concern documents; every later pass reads the sources again and gives the same documents, or says that
the files were changed. Kept of a document are some 80 bytes and its id, whatever its length: 1.5 million articles (a billion tokens)
take about 150 MB.

Ids and texts compare by 120 bits of BLAKE2b: two that differ share a hash in about one of 10²⁴ corpora of a million documents.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from console import UserError
from data.config import Source
from data.corpus.overlap import Item
from data.ground.words import normalise
from data.readers import read_source
from data.records import Document, Intake, Refusal, Split
from data.sources.raw_rows import Row, excerpt


class Texts(Sequence[str]):
    """Many short texts in one buffer: eight bytes each beside their own."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._buffer += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._buffer))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, int) and 0 <= index < len(self)
        return self._buffer[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


class StreamedDocuments:
    """All documents of one split, in the order of its sources; each iteration reads them anew."""

    def __init__(self, split: Split, sources: list[Source], root: str | None, exam_texts: Collection[bytes] = ()) -> None:
        """The first pass. `exam_texts`: text_key of what the exam holds; documents equal to one are kept for `also_in_exam`.

        Raises UserError where a source itself is at fault; bad rows are in `intakes`.
        """
        self.split = split
        self.intakes = [Intake(source.path) for source in sources]
        self._sources, self._root = sources, root
        self._ids, self._id_keys, text_keys = Texts(), bytearray(), bytearray()
        self._sizes = [0] * len(sources)  # good rows of each source
        self._renamed: dict[int, str] = {}
        self._matches: dict[int, tuple[str, Document]] = {}
        digest = hashlib.sha256()
        for number, row in self._rows(self.intakes):
            document = _document(row)
            if exam_texts and text_key(document) in exam_texts:
                self._matches[len(self._ids)] = row.where, document
            self._ids.append(document.id)
            self._id_keys += _key(document.id)
            text_keys += _key(document.text)
            self._sizes[number] += 1
            digest.update(repr(document).encode("utf-8", "surrogatepass"))
        self._rows_sha256 = digest.hexdigest()
        self._text_keys = np.frombuffer(bytes(text_keys), dtype="S16")
        self._left_out = np.zeros(len(self._ids), dtype=bool)
        self._leave_out_repeats()

    def __len__(self) -> int:
        return int(len(self._left_out) - self._left_out.sum())

    def __iter__(self) -> Iterator[Document]:
        """Raises UserError at the end of a pass that met other rows than the first one."""
        digest, seen = hashlib.sha256(), 0
        for ordinal, (_, row) in enumerate(self._rows(None)):
            document = _document(row)
            digest.update(repr(document).encode("utf-8", "surrogatepass"))
            seen += 1
            if ordinal < len(self._left_out) and not self._left_out[ordinal]:
                yield replace(document, id=self._renamed[ordinal]) if ordinal in self._renamed else document
        if digest.hexdigest() != self._rows_sha256:
            paths = ", ".join(source.path for source in self._sources)
            raise UserError(f"data.sources: {paths}: changed while it was read ({len(self._left_out)} good rows, then {seen}); start again")

    @property
    def sha256(self) -> str:
        """Of all documents, with what was left out and renamed."""
        digest = hashlib.sha256(self._rows_sha256.encode() + self._left_out.tobytes() + repr(sorted(self._renamed.items())).encode())
        return digest.hexdigest()

    def id_of(self, position: int) -> str:
        """The id of the document that iteration gives at this position, without reading anything."""
        ordinal = int(self._kept[position])
        return self._renamed.get(ordinal) or str(self._ids[ordinal])

    def ids(self) -> Iterator[str]:
        return (self.id_of(position) for position in range(len(self)))

    def text_hashes(self) -> Iterator[str]:
        """Of each document, as data/corpus/changes.py hashes a text."""
        return (bytes(self._text_keys[ordinal])[:-1].hex() for ordinal in self._kept)

    def position(self, document_id: str) -> int | None:
        """Where iteration gives the document that its source calls so."""
        ordered, order = self._by_id
        at = int(np.searchsorted(ordered, np.bytes_(_key(document_id))))
        if at == len(ordered) or ordered[at] != np.bytes_(_key(document_id)):
            return None
        ordinal = int(order[at])  # the first of repeats: the others are left out
        return None if self._left_out[ordinal] else int(np.searchsorted(self._kept, ordinal))

    def new_id(self, document_id: str) -> str | None:
        """The id in the corpus of the document that its source calls so."""
        position = self.position(document_id)
        return None if position is None else self.id_of(position)

    def make_ids_unique(self, taken: set[str], others: "list[StreamedDocuments]") -> None:
        """Ids that other splits use get the split in front, as data/load.py does with documents that are held.

        `taken`: ids of documents that are held, and new ids of `others`; this split's new ids are added.
        """
        clashes = {at for document_id in taken if (at := self.position(document_id)) is not None}
        for other in others:
            common = np.intersect1d(self._by_id[0], other._by_id[0])
            clashes |= {at for key in common if (at := self._position_of_key(key)) is not None}
        for position in sorted(clashes):
            ordinal = int(self._kept[position])
            new_id = f"{self.split}/{self._ids[ordinal]}"
            while new_id in taken or any(documents.position(new_id) is not None for documents in (self, *others)):
                new_id = f"{self.split}/{new_id}"
            self._renamed[ordinal] = new_id
            taken.add(new_id)
            self._note(ordinal, "id taken by another split: split put in front")

    def also_in_exam(self) -> dict[int, Item]:
        """Documents whose text the exam holds too, by what leave_out takes."""
        return {
            n: Item(where, self.split, replace(document, id=self._renamed.get(n, document.id)))
            for n, (where, document) in self._matches.items()
            if not self._left_out[n]
        }

    def leave_out(self, ordinal: int, reason: str) -> None:
        """By rule, counted in its source's Intake."""
        where, document = self._matches[ordinal]
        self._refuse(ordinal, where, reason, document.text, by_rule=True)
        self._forget_kept()

    def rows_used(self) -> list[int]:
        """Documents of each source."""
        return [int((~part).sum()) for part in np.split(self._left_out, np.cumsum(self._sizes)[:-1])]

    def _rows(self, intakes: list[Intake] | None) -> Iterator[tuple[int, Row]]:
        """(number of the source, good row); with `intakes` every row is counted there."""
        for number, source in enumerate(self._sources):
            notes: Counter[str] = Counter()
            for row in read_source(source, self._root, notes):
                if intakes:
                    intakes[number].rows_read += 1
                if isinstance(row, Row):
                    yield number, row
                elif intakes:
                    intakes[number].refused.append(row)
            if intakes:
                intakes[number].notes = {what: n for what, n in notes.items() if n}

    def _leave_out_repeats(self) -> None:
        """Rule 1 of data/load.py. Rows are read once more only where an id stands twice: for their places."""
        ordered, order = self._by_id
        repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        if not len(repeats):
            return
        first = np.searchsorted(ordered, ordered[repeats])
        pairs = sorted(zip(order[repeats].tolist(), order[first].tolist(), strict=True))
        wanted = {n for pair in pairs for n in pair}
        rows = {n: row for n, (_, row) in enumerate(self._rows(None)) if n in wanted}
        if wanted - rows.keys():
            raise UserError(f"data.sources: {self._sources[0].path}: changed while it was read; start again")
        for later, earlier in pairs:
            same = bool(self._text_keys[later] == self._text_keys[earlier])
            document = _document(rows[later])
            what = "repeats the document" if same else f"duplicate document id {document.id!a}: another text than"
            self._refuse(later, rows[later].where, f"{what} at {rows[earlier].where}", document.text, by_rule=same)
        self._forget_kept()

    def _refuse(self, ordinal: int, where: str, reason: str, text: str, by_rule: bool) -> None:
        self._left_out[ordinal] = True
        self.intakes[self._source_of(ordinal)].refused.append(Refusal(where, reason, excerpt(text), by_rule))

    def _note(self, ordinal: int, what: str) -> None:
        notes = self.intakes[self._source_of(ordinal)].notes
        notes[what] = notes.get(what, 0) + 1

    def _source_of(self, ordinal: int) -> int:
        return int(np.searchsorted(np.cumsum(self._sizes), ordinal, side="right"))

    def _position_of_key(self, key: np.bytes_) -> int | None:
        ordered, order = self._by_id
        ordinal = int(order[int(np.searchsorted(ordered, key))])
        return None if self._left_out[ordinal] else int(np.searchsorted(self._kept, ordinal))

    @cached_property
    def _by_id(self) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]]:
        """(hashes of ids in order, their rows); equal hashes in the order of rows."""
        keys = np.frombuffer(bytes(self._id_keys), dtype="S16")
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    @cached_property
    def _kept(self) -> npt.NDArray[np.int64]:
        """(documents,): the good row behind each position."""
        return np.flatnonzero(~self._left_out)

    def _forget_kept(self) -> None:
        self.__dict__.pop("_kept", None)


def text_key(document: Document) -> bytes:
    """What stands for a text when exam and training are compared."""
    return _key(normalise(document.text))


def _key(text: str) -> bytes:
    """16 bytes; the last one is never 0, because numpy takes zeros at the end of bytes for padding."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=15).digest() + b"."


def _document(row: Row) -> Document:
    assert isinstance(row.record, Document)
    return row.record


def read_streamed(sources: list[Source], root: str | Path | None, exam_texts: Collection[bytes]) -> dict[Split, StreamedDocuments]:
    """The streamed splits of an experiment. UserError for a split that is streamed in part."""
    splits: dict[Split, list[Source]] = {}
    for source in sources:
        if source.stream:
            splits.setdefault(source.split, []).append(source)
    for source in sources:
        if source.split in splits and not source.stream and source.holds in ("documents", "both"):
            raise UserError(
                f"data.sources: {source.path}: split {source.split} has documents with `stream: true` and without; write it for all of them"
            )
    return {split: StreamedDocuments(split, of, str(root) if root is not None else None, exam_texts) for split, of in splits.items()}

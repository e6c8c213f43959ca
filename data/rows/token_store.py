"""The memory-mapped store of all items' tokens, which every worker reads by item number."""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from console import say
from data.curriculum.catalogue import Catalogue, digest_records
from data.ground.contents import contents
from data.ground.durable import await_file, sync, write_json
from data.records import Document
from data.wording.templates import PLAIN, Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
from data.tokens import Encoded, Encoder

STORE_FORMAT = 2


# Records encoded at once, and their characters: enough to keep the tokenizer's threads busy; it needs some 150 bytes a token meanwhile.
_BATCH, _BATCH_CHARACTERS = 2048, 1 << 20


@dataclass(frozen=True)
class Aids:
    """What the reading aids of a stage must know of a store's items."""

    is_document: npt.NDArray[np.bool_]  # (items,)
    vocabulary: npt.NDArray[np.int64]  # (token ids that occur in texts,), sorted; no control tokens
    in_answers: npt.NDArray[np.bool_]  # (largest token id + 1,): occurs in an answer of a train question
    sentence_offsets: npt.NDArray[np.int64]  # (items + 1,): of item i the sentences begin at
    sentence_starts: npt.NDArray[np.int64]  # [sentence_offsets[i]:sentence_offsets[i + 1]], within the item

    def sentences(self, item: int) -> npt.NDArray[np.int64]:
        return self.sentence_starts[self.sentence_offsets[item] : self.sentence_offsets[item + 1]]


@dataclass(frozen=True)
class Others:
    """Where other wordings of questions lie in a store: behind all items, those of one item together."""

    first: npt.NDArray[np.int64]  # (items,)
    number: npt.NDArray[np.int64]  # (items,): 0 for documents

    def drawn(self, items: npt.NDArray[np.int64], step: int, seed: int) -> npt.NDArray[np.int64]:
        """(items of a step,): for each of them itself or one of its other wordings, all alike likely; a step and a seed always draw the same."""
        rng = np.random.default_rng([seed % 2**63, step, 0, 3])  # 3: not what the rows' other draws are made of (flat_rows)
        chosen = (rng.random(len(items)) * (self.number[items] + 1)).astype(np.int64)
        return np.where(chosen == 0, items, self.first[items] + chosen - 1)


@dataclass(frozen=True)
class TokenStore:
    """Tokens of all items of a catalogue, in its order, then those of their other wordings; arrays are memory-mapped."""

    tokens: npt.NDArray[np.uint32]  # (all tokens,)
    offsets: npt.NDArray[np.int64]  # (items + others + 1,): item i is tokens[offsets[i]:offsets[i + 1]]
    loss_start: npt.NDArray[np.int32]  # (items,): within the item
    sha256: str
    aids: Aids | None = None
    folder: Path | None = None
    others: Others | None = None

    @cached_property  # asked for at every step; a corpus has millions
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    @cached_property
    def item_lengths(self) -> npt.NDArray[np.int64]:
        """(items,): of an item in several wordings the longest."""
        if self.others is None:
            return self.lengths
        longest = self.lengths[: len(self.others.number)].copy()
        owner = np.repeat(np.arange(len(longest)), self.others.number)
        np.maximum.at(longest, owner, self.lengths[len(longest) :])
        return longest

    def worded(self, wording: Wording) -> "TokenStore":
        """The store of the same items in another wording; write_wordings has made it."""
        if wording == PLAIN:
            return self
        assert self.folder is not None
        return open_store(self.folder / wording.name)

    def aids_sha256(self) -> str:
        """Of what the aids say, in whatever file it stands."""
        assert self.aids is not None
        digest = hashlib.sha256()
        for field in fields(Aids):
            values = getattr(self.aids, field.name)
            digest.update(field.name.encode() + (np.flatnonzero(values) if values.dtype == bool else values).tobytes())
        if self.others is not None:
            digest.update(self.others.first.tobytes() + self.others.number.tobytes())
        return digest.hexdigest()

    def item(self, index: int) -> npt.NDArray[np.uint32]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def write_store(
    folder: Path, catalogue: Catalogue, encoder: Encoder, advance: Callable[[int], None] = lambda n: None, memory: Path | None = None
) -> TokenStore:
    """Encodes every item of the catalogue into `folder`; calls advance(items) as it goes. Memory does not grow with the corpus.

    A store that is already there for the same records and tokenizer is opened, not made again, if its files are what its manifest says
    (`memory`: see data/ground/contents.py). A new one is made beside and put in place by a rename: there is a whole store or none.
    """
    key = store_key(catalogue, encoder)
    if (manifest := _manifest(folder)) and manifest["key"] == key:
        if not (bad := _damaged(folder, manifest, memory)):
            advance(len(catalogue))
            return open_store(folder)
        say(f"{folder / bad}: is not what it was when it was written; the tokens are made again")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    sha256 = _write(draft, catalogue, encoder, advance)
    write_json(draft / "manifest.json", {"key": key, "sha256": sha256, "format": STORE_FORMAT, "files": _files(draft)})
    for worded in folder.glob("*/manifest.json"):  # other wordings of the same items stay
        worded.parent.replace(draft / worded.parent.name)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
    sync(folder.parent)
    return open_store(folder)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """{file: {bytes, sha256}} of a store that is being written, or of one that lists none."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in zip(files, contents(files, None), strict=True)}


def _write(folder: Path, catalogue: Catalogue, encoder: Encoder, advance: Callable[[int], None]) -> str:
    """The store's files; returns the hash of what is trained on: tokens, where items and their losses begin."""
    lengths, loss_start = array("q"), array("i")
    digest, aids = hashlib.sha256(), _AidsWriter()
    with (folder / "tokens.bin").open("wb") as file:
        for kind, records in chain(record_batches(catalogue), other_batches(catalogue, encoder.wording.asked)):
            made = encoder.encode_all(records)
            sizes = array("q", (len(item.ids) for item in made))
            ids = np.fromiter(chain.from_iterable(item.ids for item in made), np.uint32, sum(sizes))
            file.write(ids.tobytes())
            digest.update(ids.tobytes())
            lengths.extend(sizes)
            loss_start.extend(item.loss_start for item in made)
            aids.add(kind, ids, np.asarray(sizes), made)
            advance(len(records))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "loss_start.npy", np.asarray(loss_start, dtype=np.int32))
    aids.save(folder / "aids.npz", encoder)
    if encoder.wording.asked > 1:
        number = num_others(catalogue, encoder.wording.asked)
        np.savez(folder / "others.npz", first=len(catalogue) + np.cumsum(number) - number, number=number)
    for path in folder.iterdir():
        sync(path)
    digest.update(offsets.tobytes() + np.asarray(loss_start, dtype=np.int32).tobytes())
    return digest.hexdigest()


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "manifest.json").read_text())
        return found if "key" in found and "sha256" in found else None
    except (OSError, ValueError, TypeError):
        return None


def _damaged(folder: Path, manifest: dict[str, Any], memory: Path | None) -> str | None:
    """The name of a file that is not what the manifest says, or None. A store of before 2026-11-28 lists no files: its hash tells of all but the aids."""
    try:
        if "files" not in manifest:
            return _old_damage(folder, manifest["sha256"])
        names = sorted(manifest["files"])
        found = dict(zip(names, contents([folder / name for name in names], memory), strict=True))
    except (OSError, ValueError) as error:
        return Path(str(getattr(error, "filename", None) or "tokens.bin")).name
    return next((name for name in names if found[name] != manifest["files"][name]["sha256"]), None)


def _old_damage(folder: Path, sha256: str) -> str | None:
    digest = hashlib.sha256()
    with (folder / "tokens.bin").open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    for name in ("offsets.npy", "loss_start.npy"):
        digest.update(np.load(folder / name).tobytes())
    if digest.hexdigest() != sha256:
        return "tokens.bin"
    _open_aids(folder / "aids.npz")
    write_json(folder / "manifest.json", {**json.loads((folder / "manifest.json").read_text()), "files": _files(folder)})
    return None


def write_wordings(
    folder: Path, catalogue: Catalogue, tokenizer: "PreTrainedTokenizerFast", wordings: Iterable[Wording], memory: Path | None = None
) -> None:
    """The stores that TokenStore.worded opens, below `folder`; the plain wording is write_store's own."""
    for wording in sorted(set(wordings) - {PLAIN}, key=lambda w: w.name):
        write_store(folder / wording.name, catalogue, Encoder(tokenizer, wording), memory=memory)


class _AidsWriter:
    """Gathers Aids batch by batch."""

    def __init__(self) -> None:
        self._is_document = bytearray()
        self._seen = np.zeros(1, dtype=bool)
        self._answers = np.zeros(1, dtype=bool)
        self._num_sentences, self._sentences = array("q"), array("q")

    def add(self, kind: str, ids: npt.NDArray[np.uint32], sizes: npt.NDArray[np.int64], items: list[Encoded]) -> None:
        """`ids`: those of all items, one after the other; `sizes`: how many each has."""
        self._is_document.extend([kind.endswith("documents")] * len(items))
        self._seen = _mark(self._seen, ids)
        if kind == "train_questions":
            within = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            self._answers = _mark(self._answers, ids[within >= np.repeat([item.loss_start for item in items], sizes)])
        self._num_sentences.extend(len(item.sentences) for item in items)
        for item in items:
            self._sentences.extend(item.sentences)

    def save(self, path: Path, encoder: Encoder) -> None:
        for flags in (self._seen, self._answers):
            flags[[n for n in encoder.control_ids if n < len(flags)]] = False
        size = max(len(self._seen), len(self._answers))
        np.savez(
            path,
            is_document=np.frombuffer(self._is_document, dtype=bool),
            vocabulary=np.flatnonzero(self._seen),
            in_answers=np.pad(self._answers, (0, size - len(self._answers))),
            sentence_offsets=np.concatenate([[0], np.cumsum(self._num_sentences)]).astype(np.int64),
            sentence_starts=np.asarray(self._sentences, dtype=np.int64),
        )


def _mark(flags: npt.NDArray[np.bool_], ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """`flags` with those of `ids` set, grown where they lie beyond its end."""
    largest = int(ids.max(initial=0))
    if largest >= len(flags):
        flags = np.pad(flags, (0, 2 * largest + 1 - len(flags)))
    flags[ids] = True
    return flags


def open_store(folder: Path) -> TokenStore:
    """The store in `folder`; its arrays stay on disk until an item is read."""
    manifest = json.loads(await_file(folder / "manifest.json").read_text())
    for name in manifest.get("files", {}):
        await_file(folder / name)
    return TokenStore(
        tokens=np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r"),
        offsets=np.load(folder / "offsets.npy"),
        loss_start=np.load(folder / "loss_start.npy"),
        sha256=manifest["sha256"],
        aids=_open_aids(folder / "aids.npz"),
        folder=folder,
        others=_open_others(folder / "others.npz"),
    )


def _open_aids(path: Path) -> Aids:
    with np.load(path, allow_pickle=False) as arrays:
        return Aids(**{field.name: arrays[field.name] for field in fields(Aids)})


def _open_others(path: Path) -> Others | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return Others(arrays["first"], arrays["number"])


def record_batches(catalogue: Catalogue) -> Iterator[tuple[str, list[Any]]]:
    """(kind, records) in the catalogue's order, as many at once as memory should hold."""
    for kind, records in catalogue.records.items():
        batch: list[Any] = []
        characters = 0
        for record in records:
            batch.append(record)
            characters += len(record.text if isinstance(record, Document) else record.question)
            if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
                yield kind, batch
                batch, characters = [], 0
        if batch:
            yield kind, batch


def other_batches(catalogue: Catalogue, asked: int) -> Iterator[tuple[str, list[Any]]]:
    """(kind, questions) in the catalogue's order: each question in its other wordings, asked - 1 of them where there are so many."""
    for kind, records in catalogue.records.items():
        questions: Any = records if asked > 1 and kind.endswith("questions") else []
        for start in range(0, len(questions), _BATCH):
            batch = questions[start : start + _BATCH]
            yield kind, [replace(question, question=other) for question in batch for other in question.wordings[: asked - 1]]


def num_others(catalogue: Catalogue, asked: int) -> npt.NDArray[np.int64]:
    """(items,): how many other wordings each has in a store of so many."""
    number = np.zeros(len(catalogue), dtype=np.int64)
    for kind, numbers in catalogue.ranges.items():
        if kind.endswith("questions"):
            questions: Any = catalogue.records[kind]
            number[numbers.start : numbers.stop] = [len(question.wordings[: asked - 1]) for question in questions]
    return number


def store_key(catalogue: Catalogue, encoder: Encoder) -> str:
    """Identity of the store of these records in this tokenizer and wording."""
    digest = hashlib.sha256(f"{STORE_FORMAT}".encode())
    digest.update(encoder._backend.to_str().encode())
    digest.update(repr((encoder._start, encoder.eos_id, encoder.wording)).encode())
    if encoder.wording.passages:
        digest.update(b"passages")
    if encoder.chat:
        digest.update(repr(encoder.chat.layout).encode())
    if encoder.wording.asked > 1:
        others = ([question.question for question in batch] for _, batch in other_batches(catalogue, encoder.wording.asked))
        digest.update(json.dumps([encoder.wording.asked, *others]).encode())
    for kind, records in catalogue.records.items():
        digest.update(kind.encode())
        digest_records(records, digest)
    return digest.hexdigest()

"""Which of a stage's items follow a teacher, and by how much: `teach` and `anchor`, made ready before anything is trained.

A teacher is the stage's start, or another model of the same vocabulary, frozen. It reads each item once (of `teach` behind the item's document), and
what it would say at each target is kept in a teacher store (trainer/teaching/teacher.py). Here is what both sides must agree on: which items, behind which
passage, and the number of each target's position in that store.

    teachers/<key>/lessons.npz     items, documents, offsets, passage tokens put in front
"""

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from console import UserError
from data.config import Kind, Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.plan import Plan
from data.ground.durable import await_file, sync
from data.rows.important import Important, important_of
from data.rows.passages import Made, Passages, passages_of, with_passages
from data.rows.token_store import TokenStore, open_store
from data.tokens import Encoder
from data.wording.templates import PASSAGES, Wording, wording_of

TOP = 20
"""Of a teacher's distribution so many probabilities are kept, the rest as one mass (as the whole vocabulary: docs/teaching.md)."""
BEGUN = ".begun.npz"
"""In a teacher store: what was read of one that is not whole."""
_FORMAT = 1
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lesson:
    """One kind of items that follow a teacher."""

    first: int
    end: int
    """Items [first, end) of the catalogue."""
    behind_document: bool
    """Whether the teacher reads them behind their document."""
    starts: int
    """Tokens of such an item that stand before its passage (`<bos>`, or a chat's frame)."""
    cross_entropy: float
    """Weight of the item's usual loss."""
    follow: float
    """Weight of the divergence from the teacher."""
    model: str | None = None
    """Folder of a teacher that is not the stage's start."""
    answer_tokens: int = 0
    """Room for the start's own answer to each; 0: the file's answers."""


@dataclass(frozen=True)
class Lessons:
    """All that a stage's workers and streams must know; paths are on storage that all nodes share."""

    folder: str
    """Of the teacher store."""
    tokens: str
    """Folder of the token store, in the plain wording."""
    wording: Wording
    parts: tuple[Lesson, ...]
    longest: int
    """Tokens of the longest sequence that a teacher reads, and of all of them."""
    tokens_read: int
    temperature: float = 1.0
    """Of own answers."""

    def taught(self) -> "Taught":
        return _opened(self.folder)

    def stores(self) -> tuple[TokenStore, TokenStore]:
        """(the items' tokens, the passages')."""
        plain = open_store(Path(self.tokens))
        return plain.worded(self.wording), plain.worded(PASSAGES)

    def in_words(self, trained: int) -> str:
        """`trained`: tokens of the stage's steps. Reading is a forward pass, a third of training as many."""
        taught = self.taught()
        positions = int(taught.offsets[-1])
        size = positions * (4 + 4 * TOP + 4 * (TOP + 1)) / 1e6
        first = "the start answers its questions, then " if self.own_answers() else ""
        work = "" if first else f", some {self.tokens_read / 3 / trained:.2f} of the stage's own work"
        return f"{first}its teacher reads {len(taught.items):,} items ({self.tokens_read:,} tokens) once{work}; what it says of {positions:,} targets takes {size:,.1f} MB"

    def own_answers(self) -> bool:
        return any(part.answer_tokens for part in self.parts)

    def room(self, owners: Numbers) -> Numbers:
        """(n,): tokens kept for an own answer to each of these items of the catalogue; 0: the file's answer stands there."""
        room = np.zeros(len(owners), dtype=np.int64)
        for part in self.parts:
            if part.answer_tokens:
                room[(owners >= part.first) & (owners < part.end)] = part.answer_tokens
        return room


@dataclass(frozen=True)
class Taught:
    """Items that follow a teacher, by number, and where their targets stand in its store."""

    items: Numbers  # (n,), sorted; with the other wordings of questions, where they are trained in several
    owners: Numbers  # (n,): the item of the catalogue, of another wording the question
    documents: Numbers  # (n,): the item whose passage stands in front of it, or -1
    offsets: Numbers  # (n + 1,): of item n the positions offsets[n]:offsets[n + 1], one for each target from loss_start on

    def first_place(self, item: int) -> int:
        """The position of its first target."""
        n = int(np.searchsorted(self.items, item))
        assert self.items[n] == item, "the teacher has read other items"
        return int(self.offsets[n])


@lru_cache(maxsize=4)
def _opened(folder: str) -> Taught:
    with np.load(await_file(Path(folder) / "lessons.npz"), allow_pickle=False) as arrays:
        return Taught(*(arrays[name] for name in ("items", "owners", "documents", "offsets")))


@dataclass(frozen=True)
class Beside:
    """What a stage reads beside its own items."""

    identities: dict[str, str] = field(default_factory=dict)
    """For its key."""
    lessons: Lessons | None = None
    passages: Passages | None = None
    lengths: Numbers | None = None
    """Tokens of each item of the catalogue with what may stand before it, or be answered to it."""
    important: Important | None = None


@dataclass(frozen=True)
class Teaching:
    """What of an experiment its lessons and passages are made of."""

    folder: Path
    """Where teacher stores lie: runs/<name>/teachers."""
    tokens: Path
    catalogue: Catalogue
    starts: dict[tuple[Wording, Kind], int]
    """Encoder.starts of the wordings that stages use."""
    models: dict[str, tuple[str, str]]
    """Further models by name: (folder, identity)."""
    longest: int
    """Tokens that a row or the model's positions can hold."""
    encoder: Encoder
    """Of the plain wording."""
    seed: int = 0
    """Of own answers, and of the wordings that each step draws."""
    precision: str = "fp32"
    """That teachers read in."""
    made: Made = field(default_factory=dict)
    """Passages that a stage before has needed too."""

    def beside(self, stage: Stage, plan: Plan, store: TokenStore, start: str) -> Beside:
        """Of a stage that begins with the model of identity `start`; `store` is in its wording. UserError for what cannot be."""
        taught = self.lessons(stage, plan, store, start)
        begin = self.starts.get((wording_of(stage), "train_questions"), 0)
        open_book = passages_of(stage, self.catalogue, self.tokens, begin, self.folder.parent / "plans", self.encoder, self.made)
        elastic = important_of(stage, plan, store, self.catalogue, self.tokens, start, self.folder.parent / "importance", self.longest)
        identities = ({"teacher": taught[0]} if taught else {}) | ({"importance": elastic[0]} if elastic else {})
        beside = Beside(identities, taught[1] if taught else None, important=elastic[1] if elastic else None)
        if open_book is None:
            lengths = self._with_room(store, taught[1]) if taught and taught[1].own_answers() else None
            return replace(beside, lengths=lengths)
        lengths = with_passages(plan, store, open_book[1], self.catalogue, self.longest)
        return replace(beside, identities={**identities, "passages": open_book[0]}, passages=open_book[1], lengths=lengths)

    def lessons(self, stage: Stage, plan: Plan, store: TokenStore, start: str) -> tuple[str, Lessons] | None:
        """(their identity, the lessons) of a stage that begins with the model of identity `start`; None where it has none.

        `store` is in the stage's wording. UserError where an item has no document, or is too long with it.
        """
        parts = self._parts(stage)
        if not parts:
            return None
        wording, passages = wording_of(stage), open_store(self.tokens).worded(PASSAGES)
        present, asked = _in_their_wordings(plan, store, self.seed)
        of_part = [(asked >= part.first) & (asked < part.end) for part in parts]
        chosen, owners = [present[which] for which in of_part], [asked[which] for which in of_part]
        documents = [self._documents(own, part) for own, part in zip(owners, parts, strict=True)]
        own = [_lengths(items, part, store) for items, part in zip(chosen, parts, strict=True)]
        lengths = [
            sizes + (passages.lengths[behind] if part.behind_document else 0)
            for sizes, behind, part in zip(own, documents, parts, strict=True)
        ]
        self._refuse_long(owners, lengths, parts)
        items = np.concatenate(chosen)
        if not len(items):  # a share too small for one replay document
            return None
        order = np.argsort(items)
        items, whose, behind = items[order], np.concatenate(owners)[order], np.concatenate(documents)[order]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(own)[order] - store.loss_start[items])]).astype(np.int64)
        written = (
            {"answers": [stage.teach.answer_tokens, stage.teach.temperature, self.seed]}
            if stage.teach and stage.teach.answers == "own"
            else {}
        )
        follows_start = bool(written) or any(part.model is None for part in parts)
        facts = {
            "format": _FORMAT, "top": TOP, "precision": self.precision, "start": start if follows_start else None, "tokens": store.sha256, "passages": passages.sha256, **written,
            "read": hashlib.sha256(items.tobytes() + behind.tobytes()).hexdigest(),
            "cut": self.longest if max(map(_largest, lengths)) > self.longest else None,
            "versions": {name: version(name) for name in ("torch", "transformers")}, "models": [self.models[name][1] for name in [stage.teach.model if stage.teach else None] if name],
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.folder / key
        _write(folder / "lessons.npz", items, whose, behind, offsets)
        all_lengths = np.concatenate(lengths)
        found = Lessons(
            str(folder.resolve()), str(self.tokens.resolve()), wording, tuple(parts), min(self.longest, _largest(all_lengths)),
            int(all_lengths.sum()), stage.teach.temperature if written and stage.teach else 1.0,
        )  # fmt: skip
        return key, found

    def _parts(self, stage: Stage) -> list[Lesson]:
        found, wording = [], wording_of(stage)
        anchored = stage.anchored_kinds() if stage.anchor and stage.anchor.weight else []
        for kind in (*stage.taught_kinds(), *anchored):
            numbers, taught = self.catalogue.ranges[kind], kind in stage.taught_kinds()
            if taught:
                assert stage.teach is not None
                weights = (1 - stage.teach.share, stage.teach.share)
                model = self.models[stage.teach.model][0] if stage.teach.model else None
            else:
                assert stage.anchor is not None
                weights, model = (stage.anchor.cross_entropy, stage.anchor.weight), None
            room = stage.teach.answer_tokens if taught and stage.teach and stage.teach.answers == "own" else 0
            found.append(Lesson(numbers.start, numbers.stop, taught, self.starts[wording, kind], *weights, model, room))
        return found

    def _with_room(self, store: TokenStore, lessons: Lessons) -> Numbers:
        """(items of the catalogue,): tokens of each with room for its own answer, of several wordings the longest."""
        lengths = np.array(store.item_lengths)
        taught = lessons.taught()
        room = lessons.room(taught.owners)
        asked = taught.owners[room > 0]
        lengths[asked] = 0
        np.maximum.at(lengths, asked, store.loss_start[taught.items[room > 0]] + room[room > 0])
        return lengths

    def _documents(self, items: Numbers, part: Lesson) -> Numbers:
        if not part.behind_document:
            return np.full(len(items), -1, dtype=np.int64)
        if self.catalogue.kind_of(part.first).endswith("documents"):
            return items
        behind = self.catalogue.document_of[items]
        if (alone := items[behind < 0]).size:
            raise UserError(
                f"teach: {self.catalogue.ids[alone[0]]} has no document that its teacher could read (nor have {len(alone) - 1} more); link questions by doc_id"
            )
        return behind

    def _refuse_long(self, chosen: list[Numbers], lengths: list[Numbers], parts: list[Lesson]) -> None:
        for items, sizes, part in zip(chosen, lengths, parts, strict=True):
            if part.behind_document and (long := np.flatnonzero(sizes > self.longest)).size:
                room = f" with room for an answer of {part.answer_tokens}" if part.answer_tokens else ""
                remedy = "lower teach.answer_tokens" if part.answer_tokens else "raise trainer.row_tokens where the model allows it"
                raise UserError(
                    f"teach: {self.catalogue.ids[items[long[0]]]} has {sizes[long[0]]} tokens behind its document{room}, and a row and the model's positions hold "
                    f"{self.longest}: {remedy}, or cut the documents (so {len(long)} items)"
                )


def _in_their_wordings(plan: Plan, store: TokenStore, seed: int) -> tuple[Numbers, Numbers]:
    """(what the plan trains, once each and sorted, of each the item of the catalogue): of a question in several wordings those that a step draws."""
    if store.others is None:
        present = np.unique(plan.items)
        return present, present
    drawn = np.concatenate([store.others.drawn(plan.step(step), step, seed) for step in range(plan.num_steps)])
    present, first = np.unique(drawn, return_index=True)
    return present, plan.items[first]


def _lengths(items: Numbers, part: Lesson, store: TokenStore) -> Numbers:
    """(items,): tokens of each as the student reads it."""
    return store.loss_start[items].astype(np.int64) + part.answer_tokens if part.answer_tokens else store.lengths[items]


def _largest(lengths: Numbers) -> int:
    return int(lengths.max(initial=0))


def _write(path: Path, items: Numbers, owners: Numbers, documents: Numbers, offsets: Numbers) -> None:
    arrays = {"items": items, "owners": owners, "documents": documents, "offsets": offsets}
    if _holds(path, arrays):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(draft, **arrays)  # type: ignore[arg-type]
    sync(draft)
    draft.replace(path)


def _holds(path: Path, arrays: dict[str, Numbers]) -> bool:
    """Whether they are there, whole: what a full disk or a copy that broke off has left is written again."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return all(np.array_equal(found[name], array) for name, array in arrays.items())
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return False

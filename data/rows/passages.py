"""What stands before questions while they are trained (`passages` of a stage): their own document, one that was found, another, a false one.

plans/passages-<digest>/  documents.npy   (items,): the item of each question's document, or -1
                          retrieved.npy   (items,): the item of the document that is found for it, or -1
                          siblings.npy    (items, 2): from which items another document is drawn, [first, end)
                          false.npy, false_offsets.npy   tokens of false passages, and where each item's lie
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from console import UserError, say
from data.config import Kind, Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.plan import Plan
from data.ground.durable import await_file, sync
from data.ground.words import normalise, swap, words
from data.records import Question
from data.rows.token_store import TokenStore, open_store
from data.tokens import Encoder
from data.wording.templates import PASSAGES, document_text

Numbers = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint32]
NOTHING: Ids = np.empty(0, dtype=np.uint32)
_QUESTIONS: tuple[tuple[Kind, Kind], ...] = (("train_questions", "train_documents"), ("replay_questions", "replay_documents"))
_NEIGHBOURS = 200
_LIKENESSES = 2**24
"""Of questions to documents that are held at once: 128 MiB."""


@dataclass(frozen=True)
class Passages:
    """What a stage's streams must know of them; paths are on storage that all nodes share."""

    folder: str
    tokens: str
    """Folder of the token store, in the plain wording."""
    shares: tuple[float, float, float, float]
    """Of questions behind their document, behind what is found, behind another, behind a false one."""
    starts: int
    """Tokens of a question that stand before its passage (`<bos>`, or a chat's frame)."""
    alone: tuple[tuple[int, int], ...] = ()
    """Items [first, end) that nothing stands before, whatever the shares: an anchor's, which its start has read as they stand."""

    def stands_alone(self, item: int) -> bool:
        return any(first <= item < end for first, end in self.alone)

    def opened(self) -> "Texts":
        return _opened(self.folder, self.tokens)


@dataclass(frozen=True)
class Texts:
    """What may stand before each item."""

    documents: Numbers  # (items,)
    retrieved: Numbers  # (items,)
    siblings: Numbers  # (items, 2)
    false: Ids
    false_offsets: Numbers  # (items + 1,)
    store: TokenStore
    """Documents as passages."""

    def before(self, item: int, shares: tuple[float, float, float, float], rng: np.random.Generator) -> Ids:
        """Tokens of what stands before it this time; often nothing, and never anything before a document."""
        kind = int(np.searchsorted(np.cumsum(shares), rng.random(), side="right"))
        if kind == 2:
            return self._document(self._another(item, rng))
        if kind == 3:
            return self.false[self.false_offsets[item] : self.false_offsets[item + 1]]
        return self._document((self.documents, self.retrieved)[kind][item]) if kind < 2 else NOTHING

    def _another(self, item: int, rng: np.random.Generator) -> int:
        (first, end), own = map(int, self.siblings[item]), int(self.documents[item])
        if end - first < 2:
            return -1
        if not first <= own < end:  # it has none, or one that an earlier run held
            return int(rng.integers(first, end))
        drawn = int(rng.integers(first, end - 1))
        return drawn + (drawn >= own)

    def _document(self, number: int) -> Ids:
        return self.store.item(int(number)) if number >= 0 else NOTHING

    def longest(self, shares: tuple[float, float, float, float]) -> Numbers:
        """(items,): tokens of the longest passage that can stand before each."""
        sizes = np.append(np.asarray(self.store.lengths), 0)  # the last one is number -1
        found = [sizes[self.documents], sizes[self.retrieved], self._longest_sibling(sizes), np.diff(self.false_offsets)]
        return np.max([size if share else np.zeros_like(size) for size, share in zip(found, shares, strict=True)], axis=0)

    def _longest_sibling(self, sizes: Numbers) -> Numbers:
        longest = np.zeros(len(self.siblings), dtype=np.int64)
        for first, end in {(int(a), int(b)) for a, b in np.unique(self.siblings, axis=0)}:
            longest[self.siblings[:, 1] == end] = sizes[first:end].max(initial=0)
        return longest


@lru_cache(maxsize=4)
def _opened(folder: str, tokens: str) -> Texts:
    def array(name: str) -> Any:
        return np.load(await_file(Path(folder) / f"{name}.npy"), mmap_mode="r", allow_pickle=False)

    links = array("documents"), array("retrieved"), array("siblings")
    return Texts(*links, array("false"), array("false_offsets"), open_store(Path(tokens)).worded(PASSAGES))


Made = dict[tuple[bool, bool], tuple[str, Path]]
"""What has been made of an experiment's records, by whether documents were looked for and false ones written: (digest, folder)."""


def passages_of(
    stage: Stage, catalogue: Catalogue, tokens: Path, starts: int, folder: Path, encoder: Encoder, made: Made
) -> tuple[str, Passages] | None:
    """(identity of what stands before what, for keys; the passages) of a stage, or None. They are written below `folder`, once for stages that need the same."""
    if stage.passages is None:
        return None
    needs = stage.passages.retrieved > 0, stage.passages.conflicting > 0
    if needs not in made:
        made[needs] = _make(*needs, catalogue, tokens, folder, encoder)
    digest, place = made[needs]
    asked = np.concatenate([np.arange(numbers.start, numbers.stop) for numbers in (catalogue.ranges[kind] for kind, _ in _QUESTIONS)])
    if stage.passages.document and (alone := int((catalogue.document_of[asked] < 0).sum())):
        say(f"passages: {alone:,} of {len(asked):,} questions have no document in their split and stand alone where it would be put")
    held = tuple((catalogue.ranges[kind].start, catalogue.ranges[kind].stop) for kind in stage.anchored_kinds())
    return digest, Passages(str(place.resolve()), str(tokens.resolve()), stage.passages.shares(), starts, held)


def _make(look: bool, falsify: bool, catalogue: Catalogue, tokens: Path, folder: Path, encoder: Encoder) -> tuple[str, Path]:
    items = len(catalogue)
    retrieved, siblings = np.full(items, -1, dtype=np.int64), np.zeros((items, 2), dtype=np.int64)
    false: list[Ids] = [NOTHING] * items
    for questions, documents in _QUESTIONS:
        asked, read = catalogue.ranges[questions], catalogue.ranges[documents]
        siblings[asked.start : asked.stop] = read.start, read.stop
        if look and asked and read:
            retrieved[asked.start : asked.stop] = _found(catalogue, questions, documents)
        if falsify and asked:
            false[asked.start : asked.stop] = _false_passages(catalogue, questions, encoder)
    arrays = {
        "documents": catalogue.document_of,
        "retrieved": retrieved,
        "siblings": siblings,
        "false": np.concatenate([NOTHING, *false]),
        "false_offsets": np.concatenate([[0], np.cumsum([len(ids) for ids in false])]).astype(np.int64),
    }
    texts = open_store(tokens).worded(PASSAGES).sha256
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values()) + texts.encode()).hexdigest()[:16]
    _write(folder / f"passages-{digest}", arrays)
    return digest, folder / f"passages-{digest}"


def _found(catalogue: Catalogue, questions: Kind, documents: Kind) -> Numbers:
    """(questions,): the item of the document that is most like each question, by TF-IDF and cosine; -1 where they share no word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True)
    read = vectorizer.fit_transform(document_text(document) for document in catalogue.records[documents]).T  # type: ignore[arg-type]
    asked = vectorizer.transform(_text(question) for question in catalogue.records[questions])
    found = np.full(asked.shape[0], -1, dtype=np.int64)
    at_once = max(1, _LIKENESSES // read.shape[1])
    for first in range(0, len(found), at_once):
        likeness = (asked[first : first + at_once] @ read).toarray()
        best = likeness.argmax(axis=1)
        found[first : first + at_once] = np.where(likeness.max(axis=1) > 0, best + catalogue.ranges[documents].start, -1)
    own = catalogue.document_of[catalogue.ranges[questions].start : catalogue.ranges[questions].stop]
    say(f"passages: for {int((found == own).sum()):,} of {len(found):,} {questions.replace('_', ' ')} their own document is found")
    return found


def _text(question: Any) -> str:
    assert isinstance(question, Question)
    return question.question


def _false_passages(catalogue: Catalogue, questions: Kind, encoder: Encoder) -> list[Ids]:
    """Tokens of each question's document with another answer in it; none where the answer does not stand in it, word for word."""
    asked: list[Question] = list(catalogue.records[questions])  # type: ignore[arg-type]
    others = other_answers(asked)
    found = [NOTHING] * len(asked)
    kind: Kind = questions.replace("questions", "documents")  # type: ignore[assignment]
    texts = {document.id: document_text(document) for document in catalogue.records[kind]}  # type: ignore[arg-type]
    for n, (question, other) in enumerate(zip(asked, others, strict=True)):
        text = swap(texts.get(question.doc_id or "", ""), question.answers, other) if other else None
        if text is not None:
            found[n] = np.asarray(encoder.before(text), dtype=np.uint32)
    made = sum(map(bool, map(len, found)))
    say(f"passages: {made:,} of {len(asked):,} {questions.replace('_', ' ')} can stand behind a document with another answer in it")
    return found


def other_answers(questions: Sequence[Question]) -> list[str | None]:
    """For each the answer of the question that begins most like it, on another document and with another answer; None where there is none.

    In the order of their words questions that begin alike are neighbours, so the nearest on either side that will do is the one; some hundred are looked at.
    """
    said = [words(question.question) for question in questions]
    order = sorted(range(len(questions)), key=lambda n: (said[n], questions[n].id))
    keys = [normalise(question.answers[0]) for question in questions]
    rights = [{normalise(gold) for gold in question.answers} for question in questions]

    def will_do(n: int, other: int) -> bool:
        same = questions[n].doc_id is not None and questions[n].doc_id == questions[other].doc_id
        return bool(keys[other]) and keys[other] not in rights[n] and not same

    def alike(n: int, other: int) -> int:
        return next((i for i, (a, b) in enumerate(zip(said[n], said[other], strict=False)) if a != b), min(len(said[n]), len(said[other])))

    found: list[str | None] = [None] * len(questions)
    for place, n in enumerate(order):
        sides = (range(place - 1, max(-1, place - 1 - _NEIGHBOURS), -1), range(place + 1, min(len(order), place + 1 + _NEIGHBOURS)))
        near = [other for side in sides if (other := next((order[i] for i in side if will_do(n, order[i])), None)) is not None]
        if near:
            found[n] = questions[max(near, key=lambda other: alike(n, other))].answers[0]
    return found


def _write(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    if all(_holds(folder / f"{name}.npy", array) for name, array in arrays.items()):
        return
    shutil.rmtree(folder, ignore_errors=True)  # half deleted, or a copy that broke off
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(draft / f"{name}.npy", array)
        sync(draft / f"{name}.npy")
    try:
        draft.rename(folder)
    except OSError:  # another run of the same experiment was first
        shutil.rmtree(draft, ignore_errors=True)


def _holds(path: Path, array: npt.NDArray[Any]) -> bool:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        return found.dtype == array.dtype and np.array_equal(found, array)
    except (OSError, ValueError):
        return False


def with_passages(plan: Plan, store: TokenStore, passages: Passages, catalogue: Catalogue, longest: int) -> Numbers:
    """Tokens of each item of the catalogue, with the longest passage that may stand before it. UserError where that is too long to train."""
    before = passages.opened().longest(passages.shares)
    for first, end in passages.alone:
        before[first:end] = 0
    lengths = store.item_lengths + before
    present = np.unique(plan.items)
    if (long := present[(before[present] > 0) & (lengths[present] > longest)]).size:
        raise UserError(
            f"passages: {catalogue.ids[int(long[0])]} has up to {lengths[long[0]]} tokens behind a passage, and a row and the model's positions hold "
            f"{longest}: raise trainer.row_tokens where the model allows it, or cut the documents (so {len(long)} items)"
        )
    return np.asarray(lengths)

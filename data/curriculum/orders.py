"""Order policies: a mixture's items in the order of training. Pure; sorts instead of loops, so that a million items take seconds."""

import re

import numpy as np
import numpy.typing as npt

from console import UserError
from data.config import Kind, Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.quality import chosen
from data.records import Question

Items = npt.NDArray[np.int64]
LINKED = ("questions_first", "documents_first", "questions_grouped", "documents_grouped")
WHOLE_STAGE = ("questions_grouped", "documents_grouped", "spaced")
"""Orders that lay out the repeats of all epochs at once."""
SPACING = 3.0
"""Each gap between two repeats is so many times the one before, in time; less would not grow in steps towards the end,
where fewer and fewer items are still coming back."""


def sequence(stage: Stage, catalogue: Catalogue, rng: np.random.Generator, repeats: int) -> Items:
    """One pass over the mixture in the stage's order; `repeats` of them at once for the orders of WHOLE_STAGE."""
    if stage.order in LINKED:
        return _by_document(stage, catalogue, rng, repeats)
    if stage.order == "by_level":
        return _by_level(stage, catalogue, rng)
    if stage.order == "spaced":
        return _spaced(stage, catalogue, rng, repeats)
    assert stage.order in ("shuffled", "sequential"), stage.order
    items = np.concatenate([np.tile(chosen(stage, catalogue, kind), times) for kind, times in stage.mix.kinds().items()])
    return rng.permutation(items) if stage.order == "shuffled" else items


def check_order(stage: Stage, catalogue: Catalogue) -> None:
    """UserError where the data lack the links or levels that the order goes by."""
    for kind in (kind for kind in stage.mix.kinds() if kind.endswith("questions")):
        size = len(catalogue.ranges[kind])
        if stage.order in LINKED and (lost := int((catalogue.document_of[chosen(stage, catalogue, kind)] < 0).sum())):
            raise UserError(f"order {stage.order} needs every question linked to a document; {lost} of {size} {kind} have none")
        if stage.order == "by_level" and catalogue.records and (lost := sum(not q.level for q in _questions(catalogue, kind))):
            raise UserError(f"order by_level needs a level on every question; {lost} of {size} {kind} have none")


def level_key(level: str) -> tuple[tuple[int, float, str], ...]:
    """How levels compare: runs of digits as numbers, the rest as lower-case text, numbers before text ("2" < "10" < "a2" < "a10")."""
    parts = re.findall(r"\d+|\D+", level.strip().lower())
    return tuple((0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in parts)


def _questions(catalogue: Catalogue, kind: str) -> list[Question]:
    return catalogue.records[kind]  # type: ignore[index,return-value]


def _by_document(stage: Stage, catalogue: Catalogue, rng: np.random.Generator, repeats: int) -> Items:
    """Documents in random order, each with its own questions before or after it.

    A sort by (random rank of the document, questions or document, random).
    """
    parts, documents, is_question = [], [], []
    for kind, times in stage.mix.kinds().items():
        numbers = np.tile(chosen(stage, catalogue, kind), times * repeats)
        question = kind.endswith("questions")
        parts.append(numbers)
        documents.append(catalogue.document_of[numbers] if question else numbers)
        is_question.append(np.full(len(numbers), question))
    items, document, question = np.concatenate(parts), np.concatenate(documents), np.concatenate(is_question)
    rank = rng.permutation(len(catalogue))[document]
    first = question if stage.order.startswith("questions") else ~question
    return items[np.lexsort((rng.random(len(items)), ~first, rank))]


def _by_level(stage: Stage, catalogue: Catalogue, rng: np.random.Generator) -> Items:
    """Questions from the lowest level to the highest, then documents (which have none); shuffled within a level."""
    parts, levels = [], []
    for kind, times in stage.mix.kinds().items():
        numbers = chosen(stage, catalogue, kind)
        parts.append(np.tile(numbers, times))
        levels.append(np.tile(_level_ranks(stage, catalogue, kind)[numbers - catalogue.ranges[kind].start], times))
    items = np.concatenate(parts)
    return items[np.lexsort((rng.random(len(items)), np.concatenate(levels)))]


def _level_ranks(stage: Stage, catalogue: Catalogue, kind: Kind) -> Items:
    size = len(catalogue.ranges[kind])
    if not kind.endswith("questions"):
        return np.full(size, np.iinfo(np.int64).max)
    if not catalogue.records:  # declared counts: levels are not known, steps and coverage are
        return np.zeros(size, dtype=np.int64)
    kinds = [k for k in stage.mix.kinds() if k.endswith("questions")]
    known = sorted({q.level or "" for k in kinds for q in _questions(catalogue, k)}, key=level_key)
    rank = {level: n for n, level in enumerate(known)}
    return np.array([rank[q.level or ""] for q in _questions(catalogue, kind)], dtype=np.int64)


def _spaced(stage: Stage, catalogue: Catalogue, rng: np.random.Generator, repeats: int) -> Items:
    """Items begin evenly over the first half of the time and come back after gaps of 1, 3, 9, …; the last item's first
    gap opens when the first item's last one closes, so that reviews of old items stand between new ones throughout."""
    parts, moments = [], []
    for kind, times in stage.mix.kinds().items():
        numbers, num = chosen(stage, catalogue, kind), times * repeats
        begin = rng.random(len(numbers))
        gaps = (SPACING ** np.arange(num, dtype=np.float64) - 1) / max(SPACING ** (num - 1) - 1, 1.0)  # 0 … 1
        parts.append(np.tile(numbers, num))
        moments.append((begin[None, :] + gaps[:, None]).ravel())
    items = np.concatenate(parts)
    return items[np.argsort(np.concatenate(moments), kind="stable")]

"""A row: the flat micro-batch of one rank, with everything the loss needs in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.config import Stage
from data.curriculum.plan import Plan
from data.rows.lessons import Lesson, Lessons
from data.rows.packing import Piece, pack
from data.rows.passages import NOTHING, Passages
from data.rows.token_store import TokenStore
from data.wording.templates import PLAIN, Wording, wording_of

Row = dict[str, Any]
Loss = Literal["example", "token"]
STREAM_CPUS = 0.25
"""Logical CPUs of one rank's stream of rows; the driver must leave world_size × this free, or ranks wait for rows for ever."""


@dataclass(frozen=True)
class Reading:
    """How a stage reads its items: which tokens carry loss, and the aids. The default is the paper's.

    The store given to step_rows must be in this wording (TokenStore.worded).
    """

    wording: Wording = PLAIN
    loss_on_everything: bool = False
    other_weight: float = 1.0
    input_noise: float = 0.0
    sentence_shuffle: bool = False
    seed: int = 0
    lessons: Lessons | None = None
    passages: Passages | None = None


PAPER = Reading()


def reading_of(stage: Stage, seed: int, lessons: Lessons | None = None, passages: Passages | None = None) -> Reading:
    """What of a stage the rows must know, besides its loss."""
    everything = stage.loss_on == "everything"
    return Reading(wording_of(stage), everything, stage.other_weight, stage.input_noise, stage.sentence_shuffle, seed, lessons, passages)


def step_rows(
    plan: Plan,
    store: TokenStore,
    step: int,
    rank: int,
    world_size: int,
    capacity: int,
    loss: Loss,
    reading: Reading = PAPER,
    longest: int | None = None,
    one_item: bool = False,
) -> list[Row]:
    """The rows of one rank for one optimiser step, one per micro-step.

    Each row: step, micro_step, num_micro_steps; input_ids, position_ids (restart at each item) and loss_weight, all (T,);
    cu_seqlens (pieces + 1,) with the items' boundaries; with input noise also target_ids (T,), the ids without noise;
    where items follow a teacher also followed (T,), each target's position in its store or -1, and follow_weight (T,), of the divergence from it;
    where own answers will stand, there is room for the longest (trainer/teaching/teacher.py puts them in and divides by what they are).
    Summed over all ranks and micro-steps of a step, Σ weight × nll is the step's loss: the division is done here, once,
    with the whole step's counts. With weights of their own on tokens, counts are sums of weights: a weighted mean.
    `one_item`: see pack; weights are the same.
    """
    items = plan.step(step)
    owners = items  # of a question in another wording, the question
    if store.others is not None:
        items = store.others.drawn(items, step, reading.seed)
    before = _passages(owners, step, reading)
    own = _lengths(items, owners, store, reading)
    lengths = own + [len(passage) for passage in before] if before else own
    grid = pack(lengths, world_size, capacity, longest, one_item)
    mine = {piece.item for ranks in grid for piece in ranks[rank]}
    weighted = reading.loss_on_everything or reading.other_weight != 1
    tokens = {n: _read(int(items[n]), int(owners[n]), step, store, reading) for n in (range(len(items)) if weighted else mine)}
    if before and reading.passages:
        tokens = {n: _behind(item, before[n], reading.passages.starts) for n, item in tokens.items()}
    targets = _sums(tokens) if weighted else own - store.loss_start[items]  # (items of the step,)
    item_weight = 1.0 / (targets * len(items)) if loss == "example" else np.full(len(items), 1.0 / targets.sum())
    return [
        {"step": step, "micro_step": n, "num_micro_steps": len(grid), **_row(ranks[rank], tokens, item_weight, reading)}
        for n, ranks in enumerate(grid)
    ]


def rank_rows(
    plan: Plan,
    store: TokenStore,
    rank: int,
    world_size: int,
    capacity: int,
    loss: Loss,
    first_step: int = 0,
    reading: Reading = PAPER,
    longest: int | None = None,
    one_item: bool = False,
) -> Iterator[Row]:
    """Every row of one rank from `first_step` on: the stream without Ray."""
    for step in range(first_step, plan.num_steps):
        yield from step_rows(plan, store, step, rank, world_size, capacity, loss, reading, longest, one_item)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One item as it is read in one step; all (tokens of the item,)."""

    input_ids: npt.NDArray[Any]
    target_ids: npt.NDArray[Any]
    share: npt.NDArray[np.float64]
    """Of each target token, before the division: 0 where no loss is."""
    lesson: Lesson | None = None
    followed: tuple[int, int] = (0, 0)
    """The first token that follows a teacher, and its position in the teacher store; those after it stand one behind another."""


def _lengths(items: npt.NDArray[np.int64], owners: npt.NDArray[np.int64], store: TokenStore, reading: Reading) -> npt.NDArray[np.int64]:
    if reading.lessons is None or not reading.lessons.own_answers():
        return store.lengths[items]
    room = reading.lessons.room(owners)
    return np.where(room > 0, store.loss_start[items] + room, store.lengths[items])


def _read(item: int, owner: int, step: int, store: TokenStore, reading: Reading) -> _Tokens:
    ids = store.item(item)
    lesson = next((part for part in reading.lessons.parts if part.first <= owner < part.end), None) if reading.lessons else None
    if lesson and lesson.answer_tokens:
        ids = np.concatenate([ids[: store.loss_start[item]], np.full(lesson.answer_tokens, ids[-1])])
    is_document = store.aids is not None and bool(store.aids.is_document[item])
    if is_document and reading.sentence_shuffle:
        ids = ids[_shuffled(item, step, store, reading)]
    share = _weights(ids, store, reading) if is_document else np.ones(len(ids))
    share[: 1 if reading.loss_on_everything and not is_document else store.loss_start[item]] = 0.0
    noisy = _with_noise(ids, item, step, store, reading) if is_document and reading.input_noise else ids
    if reading.lessons is None or lesson is None:
        return _Tokens(noisy, ids, share)
    return _Tokens(noisy, ids, share, lesson, (int(store.loss_start[item]), reading.lessons.taught().first_place(item)))


def _passages(items: npt.NDArray[np.int64], step: int, reading: Reading) -> list[npt.NDArray[Any]] | None:
    """What stands before each item of a step in this one reading, often nothing; None where it never does."""
    chosen = reading.passages
    if chosen is None:
        return None
    texts = chosen.opened()
    return [
        NOTHING if chosen.stands_alone(int(item)) else texts.before(int(item), chosen.shares, _rng(4, step, int(item), reading))
        for item in items
    ]


def _behind(item: _Tokens, passage: npt.NDArray[Any], starts: int) -> _Tokens:
    """The same item with a passage in it that is read and not learnt."""
    if not len(passage):
        return item
    ids, targets = (np.concatenate([one[:starts], passage, one[starts:]]) for one in (item.input_ids, item.target_ids))
    share = np.concatenate([item.share[:starts], np.zeros(len(passage)), item.share[starts:]])
    return _Tokens(ids, targets, share, item.lesson, (item.followed[0] + len(passage), item.followed[1]))


def _sums(tokens: dict[int, _Tokens]) -> npt.NDArray[np.float64]:
    """Sums of weights; a hair where all are 0, so that nothing divides by 0."""
    return np.maximum([item.share.sum() for item in tokens.values()], 1e-9)


def _weights(ids: npt.NDArray[Any], store: TokenStore, reading: Reading) -> npt.NDArray[np.float64]:
    """1 for tokens that occur in an answer of a train question, other_weight for the rest."""
    if reading.other_weight == 1:
        return np.ones(len(ids))
    assert store.aids is not None
    return np.where(store.aids.in_answers[ids], 1.0, reading.other_weight)


def _rng(purpose: int, step: int, item: int, reading: Reading) -> np.random.Generator:
    """3 as a purpose draws wordings (Others.drawn)."""
    return np.random.default_rng([reading.seed % 2**63, step, item, purpose])


def _shuffled(item: int, step: int, store: TokenStore, reading: Reading) -> npt.NDArray[np.int64]:
    """The order of an item's tokens with its sentences permuted; what stands before the first sentence stays."""
    assert store.aids is not None
    starts = store.aids.sentences(item)
    bounds = np.append(starts, store.lengths[item])
    order = _rng(1, step, item, reading).permutation(len(starts))
    return np.concatenate([np.arange(starts[0]), *(np.arange(bounds[n], bounds[n + 1]) for n in order)])


def _with_noise(ids: npt.NDArray[Any], item: int, step: int, store: TokenStore, reading: Reading) -> npt.NDArray[Any]:
    """Exactly input_noise of the tokens replaced, never what stands before the first target; random ones occur somewhere in the texts."""
    assert store.aids is not None
    rng = _rng(2, step, item, reading)
    first = int(store.loss_start[item])
    places = first + rng.choice(len(ids) - first, round(reading.input_noise * (len(ids) - first)), replace=False)
    noisy = ids.copy()
    noisy[places] = rng.choice(store.aids.vocabulary, len(places))
    return noisy


def _row(pieces: list[Piece], tokens: dict[int, _Tokens], item_weight: Any, reading: Reading) -> Row:
    input_ids, target_ids, position_ids, loss_weight = [], [], [], []
    for piece in pieces:
        item = tokens[piece.item]
        input_ids.append(item.input_ids[piece.start : piece.end])
        target_ids.append(item.target_ids[piece.start : piece.end])
        position_ids.append(np.arange(len(piece)))
        weight = np.zeros(len(piece), dtype=np.float32)
        if piece.counts:  # a piece's first token has nothing to be predicted from
            weight[1:] = item_weight[piece.item] * item.share[piece.start + 1 : piece.end]
        loss_weight.append(weight)
    lengths = [len(piece) for piece in pieces]
    row = {
        "input_ids": np.concatenate(input_ids).astype(np.int64),
        "position_ids": np.concatenate(position_ids).astype(np.int64),
        "loss_weight": np.concatenate(loss_weight),
        "cu_seqlens": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
    }
    if reading.lessons:
        row |= _following(pieces, tokens, row["loss_weight"])
    return {**row, "target_ids": np.concatenate(target_ids).astype(np.int64)} if reading.input_noise else row


def _following(pieces: list[Piece], tokens: dict[int, _Tokens], weight: npt.NDArray[np.float32]) -> Row:
    """What of a row the teacher has a say in: its weights, and where each target stands in the teacher store."""
    parts: list[tuple[Any, Any, Any]] = []
    for piece in pieces:
        numbers, lesson = np.full(len(piece), -1, dtype=np.int64), tokens[piece.item].lesson
        if lesson is not None:  # a prompt that is learnt too follows nobody
            first, of_first = tokens[piece.item].followed
            numbers = np.arange(piece.start, piece.end) - first + of_first
            numbers[: max(0, first - piece.start)] = -1
        taught = numbers >= 0
        parts.append(
            (numbers, np.where(taught, lesson.cross_entropy if lesson else 1, 1), np.where(taught, lesson.follow if lesson else 0, 0))
        )
    numbers, usual, follow = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    follow = (weight * follow).astype(np.float32)
    return {"loss_weight": (weight * usual).astype(np.float32), "followed": np.where(follow > 0, numbers, -1), "follow_weight": follow}


def counts(row: Row) -> bool:
    """Whether anything is learnt from the row: filler keeps ranks in step and no more."""
    return bool(row["loss_weight"].any() or ("follow_weight" in row and row["follow_weight"].any()))

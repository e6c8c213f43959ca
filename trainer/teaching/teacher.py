"""The teacher's pass: once a stage, before its first step, in the group of processes that will train it. What it leaves is the teacher store.

The teacher is an ordinary engine with the start's weights (any ZeRO stage; in fp32 whatever the stage is trained in, unless trainer.teacher_precision says otherwise: in bf16 two
thirds of all positions have ties and a quarter another top 20), and it is closed before the stage's own is made: there is never a second model in memory. Rows are
packed as for one rank and dealt out, so that every number of ranks computes the same rows. Stopped or killed it goes on with the rows that are not read yet.

    teachers/<key>/tokens.bin      the targets, uint32 (N,); 2**32 - 1 where an own answer had ended before
                   ids.bin         the teacher's most probable tokens, uint32 (N, 20)
                   log_probs.bin   their log-probabilities and the rest's, float32 (N, 21)
                   manifest.json   sizes and hashes, put in place last
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.rows.flat_rows import Row
from data.rows.lessons import TOP, Lesson, Lessons
from data.rows.packing import Piece
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.network.families import folder_weights
from trainer.network.text_config import text_config
from trainer.store.checkpoint import await_committed, await_model, is_whole, rank_zero_says
from trainer.store.weights import Weights
from trainer.teaching.own_answers import Answers, ended, own_answers
from trainer.teaching.progress import Progress
from trainer.teaching.reading import Reader, dealt, flat_row, logits_after, reader_of
from trainer.teaching.store import NOTHING, Said, Writer
from trainer.watch.guard import Stopped


def ensure_store(
    settings: WorkerSettings, job: Job, parent: Callable[[], Weights], device: torch.device, progress: Progress
) -> dict[str, Any] | None:
    """Makes the stage's teacher store unless it is there, sound; its manifest, or None for a stage without lessons. All ranks together.

    `parent`: the weights of the stage's start. Stopped where that is asked for; what was read stays.
    """
    if job.lessons is None:
        return None
    lessons, folder = job.lessons, Path(job.lessons.folder)
    rank = torch.distributed.get_rank()
    if rank_zero_says(is_whole(folder) if rank == 0 else None):
        return _told(folder)
    writer = Writer(folder, int(lessons.taught().offsets[-1])) if rank == 0 else None
    try:
        answers = _read_all(settings, job, lessons, parent, device, progress, writer)
    except Stopped:
        if writer:
            writer.save()
        raise
    if writer:
        own = {"own_answers": len(answers), "ended": sum(ended(lessons, answers))} if answers else {}
        facts = {"top": TOP, "tokens_read": lessons.tokens_read, "world_size": _world_size()}
        writer.commit(facts | own, int(lessons.room(lessons.taught().owners).sum()) - sum(map(len, answers.values())))
    torch.distributed.barrier()
    return _told(folder)


def _read_all(
    settings: WorkerSettings,
    job: Job,
    lessons: Lessons,
    parent: Callable[[], Weights],
    device: torch.device,
    progress: Progress,
    writer: Writer | None,
) -> Answers:
    """Has every teacher read its items; the start's own answers, where it gives any."""
    vocabulary = int(text_config(Path(settings.model_folder)).vocab_size)
    answers: Answers = {}
    start = [None] if lessons.own_answers() else []  # reads first, whoever is the teacher
    for model in dict.fromkeys([*start, *(part.model for part in lessons.parts)]):
        of_model = settings if model is None else replace(settings, model_folder=model, parent_stage=None)
        weights = parent() if model is None else _weights_of(model)
        with reader_of(of_model, job, lessons, weights, device, vocabulary, progress) as reader:
            if model is None and lessons.own_answers():
                answers = _own(reader, job, lessons, settings.seed, writer)
            of_teacher = [part for part in lessons.parts if part.model == model]
            for told in _pass(reader, job, _sequences(lessons, of_teacher, answers), writer):
                if writer:
                    writer.write(told)
    return answers


def _own(reader: Reader, job: Job, lessons: Lessons, seed: int, writer: Writer | None) -> Answers:
    """Those that an earlier pass has left, or new ones."""
    kept: Answers | None = rank_zero_says(writer.answers() if writer else None)
    if kept is not None:
        return kept
    answers = own_answers(reader, job, lessons, seed)
    if writer:
        writer.keep_answers(answers)
    return answers


def _told(folder: Path) -> dict[str, Any]:
    """The manifest, once this node sees it and its files."""
    await_committed(folder)
    return dict(json.loads((folder / "manifest.json").read_text()))


def _weights_of(model: str) -> Weights:
    await_model(Path(model))
    return folder_weights(Path(model))


def with_teacher(rows: Iterator[Row], lessons: Lessons | None) -> Iterator[Row]:
    """Rows with what the teacher says of their targets: teacher_ids (n, k) and teacher_log_probs (n, k + 1), of the positions in `followed`.

    Own answers are put in their places; what is left of those carries no weight, and an item's weight is divided by the tokens that there are.
    """
    if lessons is None:
        yield from rows
        return
    folder = Path(lessons.folder)
    if lessons.own_answers():
        rows = map(_Answering(lessons, np.memmap(folder / "tokens.bin", np.uint32, "r")), rows)
    ids = np.memmap(folder / "ids.bin", np.uint32, "r").reshape(-1, TOP)
    log_probs = np.memmap(folder / "log_probs.bin", np.float32, "r").reshape(-1, TOP + 1)
    for row in rows:
        places = row["followed"][1:]
        places = places[places >= 0]
        yield {**row, "teacher_ids": ids[places].astype(np.int64), "teacher_log_probs": log_probs[places]}


class _Answering:
    """Puts own answers into rows."""

    def __init__(self, lessons: Lessons, tokens: npt.NDArray[np.uint32]) -> None:
        taught = lessons.taught()
        self._tokens, self._offsets, self._room = tokens, taught.offsets, lessons.room(taught.owners)
        self._there = np.add.reduceat((tokens != NOTHING).astype(np.int64), taught.offsets[:-1])

    def __call__(self, row: Row) -> Row:
        at = np.flatnonzero(row["followed"] >= 0)
        places = row["followed"][at]
        items = np.searchsorted(self._offsets, places, side="right") - 1
        own = self._room[items] > 0
        at, told, items = at[own], self._tokens[places[own]], items[own]
        there = told != NOTHING
        changed: Row = {name: row[name].copy() for name in ("input_ids", "target_ids", "followed", "follow_weight") if name in row}
        for name in ("input_ids", "target_ids"):
            if name in row:
                changed[name][at[there]] = told[there]
        changed["follow_weight"][at] *= np.where(there, self._room[items] / self._there[items], 0).astype(np.float32)
        changed["followed"][at[~there]] = -1
        return {**row, **changed}


def most_probable(logits: Tensor, k: int = TOP) -> tuple[Tensor, Tensor]:
    """(ids (K, k), log-probabilities (K, k + 1)) of logits (K, V), in fp64: the k largest by rank, and the mass of all others, summed as such and not as 1 − Σ.

    A vocabulary of k or fewer has no others: its last ids come again without mass, and so does the rest (−inf).
    """
    log_probs = logits.double().log_softmax(dim=-1)
    top, ids = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
    rest = log_probs.scatter(1, ids, float("-inf")).logsumexp(dim=-1, keepdim=True)
    if missing := k - top.shape[1]:
        top = torch.nn.functional.pad(top, (0, missing), value=float("-inf"))
        ids = torch.cat([ids, ids[:, -1:].expand(-1, missing)], dim=1)
    return ids, torch.cat([top, rest], dim=1).float()


@dataclass(frozen=True)
class _Sequence:
    """What a teacher reads of one item."""

    ids: npt.NDArray[np.int64]
    loss_start: int
    first_place: int
    """Position of the target at loss_start in the store."""


def _sequences(lessons: Lessons, parts: list[Lesson], answers: Answers) -> list[_Sequence]:
    """`answers`: own ones, by item."""
    store, passages = lessons.stores()
    taught = lessons.taught()
    made = []
    columns = (taught.items, taught.owners, taught.documents, taught.offsets)
    for item, owner, document, place in zip(*(column.tolist() for column in columns), strict=False):
        part = next((part for part in parts if part.first <= owner < part.end), None)
        if part is None:
            continue
        ids, first = store.item(item).astype(np.int64), int(store.loss_start[item])
        if part.answer_tokens:
            ids = np.concatenate([ids[:first], answers[item]])
        passage = passages.item(document).astype(np.int64) if part.behind_document else ids[:0]
        made.append(_Sequence(np.concatenate([ids[: part.starts], passage, ids[part.starts :]]), first + len(passage), place))
    return made


def _pass(reader: Reader, job: Job, sequences: list[_Sequence], writer: Writer | None) -> Iterator[list[Said]]:
    """What the teacher says of each rank's row; rows that an earlier pass has read are left out."""

    def read(pieces: list[Piece]) -> Said:
        return _read(reader, _row([(sequences[piece.item], piece.start, piece.end) for piece in pieces]))

    def was_read(pieces: list[Piece]) -> bool:
        if writer is None or not writer.goes_on:
            return False
        places = np.concatenate([_places(sequences[piece.item], piece.start, piece.end) for piece in pieces])
        return writer.has(places[places >= 0])

    yield from dealt(reader, job, [len(one.ids) for one in sequences], read, "its teacher has read row", was_read)


def _places(sequence: _Sequence, start: int, end: int) -> npt.NDArray[np.int64]:
    """Of each of its tokens [start, end) the position in the store, or -1."""
    at = np.arange(start, end) - sequence.loss_start
    return np.where((at >= 0) & (np.arange(start, end) > start), at + sequence.first_place, -1)


def _row(pieces: list[tuple[_Sequence, int, int]]) -> Row:
    """One flat row; `places`: of each target its position in the store, or -1."""
    ids = flat_row([sequence.ids[start:end] for sequence, start, end in pieces])
    return ids | {"places": np.concatenate([_places(*piece) for piece in pieces])}


def _read(reader: Reader, row: Row) -> Said:
    places = row["places"][1:]
    positions = np.flatnonzero(places >= 0)
    made: list[tuple[Tensor, Tensor]] = []
    logits_after(reader, row, positions if len(positions) else np.zeros(1), lambda logits, first: made.append(most_probable(logits)))
    ids, log_probs = (torch.cat(parts) for parts in zip(*made, strict=True))
    count = len(positions)
    targets = row["input_ids"][1:][positions]
    return places[positions], targets.astype(np.uint32), ids[:count].cpu().numpy().astype(np.uint32), log_probs[:count].cpu().numpy()


def _world_size() -> int:
    return torch.distributed.get_world_size()

"""A model that reads and is not trained, in the group of processes that will train the stage: rows packed as for one rank and dealt out, so that every number of ranks computes the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.rows.flat_rows import Row
from data.rows.lessons import Lessons
from data.rows.packing import Piece, pack
from failpoints import hit
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.kernels.linear_loss import LOGITS_AT_ONCE, head_gives, plain_head, tiny_row
from trainer.step.placing import model_inputs
from trainer.step.set_up import StageEngine, make_engine
from trainer.step.step import base_module, keeps_logits
from trainer.store.checkpoint import rank_zero_says
from trainer.store.weights import Weights
from trainer.teaching.progress import Progress
from trainer.watch.guard import Stopped


@dataclass(frozen=True)
class Reader:
    """A model that reads and is not trained."""

    made: StageEngine
    vocabulary: int
    """Tokens that the stage's model knows; a teacher may have more rows."""
    progress: Progress


@contextmanager
def reader_of(
    settings: WorkerSettings,
    job: Job,
    lessons: Lessons,
    weights: Weights,
    device: torch.device,
    vocabulary: int,
    progress: Progress,
) -> Iterator[Reader]:
    trainer = settings.trainer.model_copy(update={"attention": "auto", "gradient_checkpointing": False, "cuda_graphs": False, "fp8": "off"})
    as_it_is = job.stage.model_copy(update={"adapter": None, "freeze_share": 0.0})
    reads = replace(job, stage=as_it_is, longest_item=lessons.longest, row_tokens=min(job.capacity, max(lessons.tokens_read, 1)))
    made = make_engine(replace(settings, trainer=trainer, precision=trainer.teacher_precision), reads, weights, device, None)
    try:
        made.engine.module.eval()
        yield Reader(made, vocabulary, progress)
    finally:
        made.close()


def dealt(
    reader: Reader,
    job: Job,
    lengths: list[int],
    read: Callable[[list[Piece]], Any],
    what: str,
    was_read: Callable[[list[Piece]], bool] = lambda pieces: False,
    last: bool = True,
) -> Iterator[list[Any]]:
    """What `read` makes of each rank's row of items of these lengths, round by round; the same list on every rank.

    `was_read`: rows to leave out, as rank 0 knows them; `what` is done, for people, up to the word before a row's number; `last`: and with them the pass. Stopped, behind a round, where any rank is asked to stop.
    """
    grid = [pieces for (pieces,) in pack(lengths, 1, job.capacity, job.longest, reader.made.isolation.one_item)]
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    left = [row for row, there in zip(grid, rank_zero_says([was_read(row) for row in grid]), strict=True) if not there]
    for first in range(0, len(left), world_size):
        mine = first + rank < len(left)
        pieces = left[first + rank if mine else first]  # a rank without a row keeps the others' collectives company
        hit("teacher.row")
        told = read(pieces)
        every: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(every, (told if mine else None, reader.progress.stop_requested))
        reader.progress.gets_on(what, len(grid) - len(left) + min(first + world_size, len(left)), len(grid), last)
        yield [one for one, _ in every if one is not None]
        if any(stop for _, stop in every):
            raise Stopped(0)


def flat_row(sequences: list[npt.NDArray[np.int64]]) -> Row:
    lengths = [len(ids) for ids in sequences]
    return {
        "input_ids": np.concatenate(sequences),
        "position_ids": np.concatenate([np.arange(length) for length in lengths]),
        "cu_seqlens": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
    }


def logits_after(reader: Reader, row: Row, positions: npt.NDArray[Any], take: Callable[[Tensor, int], None]) -> None:
    """Calls take(logits (n, V), number of the first) for what comes after each position, a few at a time. By all ranks together."""
    engine, attention = reader.made.engine, reader.made.attention
    at = torch.as_tensor(np.asarray(positions, dtype=np.int64), device=engine.device)
    module = base_module(engine.module)
    head = plain_head(engine, module, lambda: model_inputs(tiny_row(), attention, engine.device))
    keeps = keeps_logits(type(module).forward)
    inputs = model_inputs(row, attention, engine.device) | ({"logits_to_keep": at} if keeps else {})
    with torch.no_grad():
        if head is None:
            logits = engine.forward(**inputs).logits[0]
            take((logits if keeps else logits[at])[:, : reader.vocabulary], 0)
            return

        def few_at_once(hidden: Tensor) -> Tensor:
            rows = max(1, LOGITS_AT_ONCE // len(head.weight) // 4)  # of fp64, and twice
            for first in range(0, len(hidden), rows):
                logits = hidden[first : first + rows] @ head.weight.T
                take((logits if head.bias is None else logits + head.bias)[:, : reader.vocabulary], first)
            return hidden.new_zeros(())

        with head_gives(head, few_at_once, None if keeps else at):
            engine.forward(**inputs)

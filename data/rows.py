"""A row: the flat micro-batch of one rank, with everything the loss needs in it."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from data.packing import Piece, pack
from data.plan import Items, Plan
from data.tokens import TokenStore

Row = dict[str, Any]
Loss = Literal["example", "token"]


def step_rows(plan: Plan, store: TokenStore, step: int, rank: int, world_size: int, capacity: int, loss: Loss) -> list[Row]:
    """The rows of one rank for one optimiser step, one per micro-step.

    Each row: step, micro_step, num_micro_steps; input_ids, position_ids (restart at each item) and loss_weight, all (T,);
    cu_seqlens (pieces + 1,) with the items' boundaries. Summed over all ranks and micro-steps of a step, Σ weight × nll
    is the step's loss: the division is done here, once, with the whole step's counts.
    """
    items = plan.step(step)
    grid = pack(store.lengths[items], world_size, capacity)
    targets = store.lengths[items] - store.loss_start[items]  # (items of the step,)
    item_weight = 1.0 / (targets * len(items)) if loss == "example" else np.full(len(items), 1.0 / targets.sum())
    return [
        {"step": step, "micro_step": n, "num_micro_steps": len(grid), **_row(ranks[rank], items, item_weight, store)}
        for n, ranks in enumerate(grid)
    ]


def rank_rows(plan: Plan, store: TokenStore, rank: int, world_size: int, capacity: int, loss: Loss, first_step: int = 0) -> Iterator[Row]:
    """Every row of one rank from `first_step` on: the stream without Ray."""
    for step in range(first_step, plan.num_steps):
        yield from step_rows(plan, store, step, rank, world_size, capacity, loss)


def _row(pieces: list[Piece], items: Items, item_weight: Any, store: TokenStore) -> Row:
    input_ids, position_ids, loss_weight = [], [], []
    for piece in pieces:
        number = int(items[piece.item])
        input_ids.append(store.item(number)[piece.start : piece.end])
        position_ids.append(np.arange(len(piece)))
        weight = np.zeros(len(piece), dtype=np.float32)
        first = max(int(store.loss_start[number]) - piece.start, 1)  # a piece's first token has nothing to be predicted from
        if piece.counts:
            weight[first:] = item_weight[piece.item]
        loss_weight.append(weight)
    lengths = [len(piece) for piece in pieces]
    return {
        "input_ids": np.concatenate(input_ids).astype(np.int64),
        "position_ids": np.concatenate(position_ids).astype(np.int64),
        "loss_weight": np.concatenate(loss_weight),
        "cu_seqlens": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
    }

"""Rows padded to few shapes: what a GPU's kernels and compiled code are asked for is then the same from step to step. Pure.

A stage's rows have as many lengths as steps. Here they are padded to a ladder of a few lengths, boundaries to a fixed count (they end in repeats of the row's length),
targets to a multiple. Pads carry no weight and stand behind all items, so that none sees them; what they change is the order of sums. The plan, its hash and the packing
stay: it is the stream of rows that is padded, once it is known how many ranks share a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from data.curriculum.orders import Items
from data.curriculum.plan import Plan
from data.rows.flat_rows import Row
from data.rows.packing import pack

FULL = 0.97
"""Share of real tokens that a ladder is made long for."""
_MOST_LENGTHS = 9
"""As many graphs are compiled at most: the film plan, one row a step, is FULL with nine and 95.5 % with six."""
_LENGTH_MULTIPLE = {False: 32, True: 8}  # of an item of 100 tokens 28 would be lost to the larger one
_PIECES_MULTIPLE = 16
_TARGETS_SHARE = 16  # targets are padded to a multiple of this share of the row: so many counts a length at most
_MOST_STEPS = 2000  # looked at; a step of 256 items takes a millisecond


@dataclass(frozen=True)
class Shapes:
    """What the rows of a stage are padded to."""

    lengths: tuple[int, ...]
    """Tokens of a row, the ladder from short to long."""
    pieces: int
    """Items of a row and pieces of its padding."""
    longest: int
    """Tokens of the longest item; padding is cut into pieces that are no longer."""

    def pad(self, row: Row) -> Row:
        """The row with the next length of the ladder. `cu_seqlens` stay those of the items; `boundaries` (pieces + 1,) are what attention is told, `num_targets` the
        targets with their padding, `longest` a bound of its items, and of all rows' as far as lengths were known before (other wordings and passages are drawn)."""
        real = len(row["input_ids"])
        length = self.length(real)
        pad: Row = {
            name: np.pad(row[name], (0, length - real))
            for name in ("input_ids", "position_ids", "loss_weight", "target_ids", "follow_weight")
            if name in row
        }
        targets = max(1, int(np.count_nonzero(row["loss_weight"][1:])))
        multiple = max(1, length // _TARGETS_SHARE)
        return {
            **row,
            **pad,
            "boundaries": self._boundaries(row["cu_seqlens"], length),
            "num_targets": ceil(targets / multiple) * multiple,
            "longest": max(self.longest, int(np.diff(row["cu_seqlens"]).max())),  # a kernel that is told less leaves the rest uncomputed
        }

    def length(self, real: int) -> int:
        """Tokens that a row of so many is padded to."""
        return next((length for length in self.lengths if length >= real), _up(real, _LENGTH_MULTIPLE[False]))

    def _boundaries(self, cu_seqlens: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int32]:
        real = int(cu_seqlens[-1])
        padding = np.arange(real + self.longest, length, self.longest)
        found = np.concatenate([cu_seqlens, padding, [length] if length > real else []]).astype(np.int32)
        count = self.pieces + 1
        while count < len(found):  # a step that was not looked at holds more: another shape
            count = 2 * count - 1
        return np.pad(found, (0, count - len(found)), constant_values=length)


def static_shapes(plan: Plan, lengths: Items, world_size: int, capacity: int, longest: int, one_item: bool = False) -> Shapes:
    """Of a stage: as few lengths as leave FULL of the tokens real, at most nine, from its own packed steps.

    `lengths`: tokens of every item of the catalogue; `longest`: tokens of an item before it is cut.
    """
    tokens, pieces, item = (np.array(column) for column in zip(*_rows(plan, lengths, world_size, capacity, longest, one_item), strict=True))
    ladder = _ladder(_up(tokens, _LENGTH_MULTIPLE[one_item]), int(tokens.sum()), _MOST_LENGTHS)
    bound = int(item.max())
    padded = np.array(ladder)[np.searchsorted(ladder, tokens)]
    return Shapes(ladder, _up(int((pieces + -(-(padded - tokens) // bound)).max()), _PIECES_MULTIPLE), bound)


def fill(shapes: Shapes, plan: Plan, lengths: Items, world_size: int, capacity: int, longest: int, one_item: bool = False) -> float:
    """Share of tokens that are no padding."""
    tokens = [found for found, *_ in _rows(plan, lengths, world_size, capacity, longest, one_item)]
    return sum(tokens) / sum(shapes.length(n) for n in tokens)


def padded(tokens: npt.NDArray[np.int64], one_item: bool = False) -> npt.NDArray[np.int64]:
    """Of rows of so many tokens: what a ladder of their own pads each to."""
    ladder = np.array(_ladder(_up(tokens, _LENGTH_MULTIPLE[one_item]).ravel(), int(tokens.sum()), _MOST_LENGTHS))
    return ladder[np.searchsorted(ladder, tokens)]


def best_row_tokens(stages: list[tuple[Plan, Items]], world_size: int, item: int, most: int) -> tuple[int, float]:
    """(tokens of a row, share of real tokens): the longest of 2,048, 4,096, … `most` with FULL rows, so that a step has few long micro-steps; where none has, the fullest.

    `stages`: plans with the tokens of every item; `item`: tokens of the longest, which a row must hold.
    """
    found: dict[int, float] = {}
    for capacity in (size for size in (2**n for n in range(11, 20)) if size <= most and (size >= item or 2 * size > most)):
        tokens = padded = 0
        for plan, lengths in stages:
            few = _few_steps(plan)
            shapes = static_shapes(few, lengths, world_size, capacity, capacity)
            rows = [n for n, *_ in _rows(few, lengths, world_size, capacity, capacity, False)]
            tokens, padded = tokens + sum(rows), padded + sum(map(shapes.length, rows))
        found[capacity] = tokens / max(1, padded)
    full = [capacity for capacity, share in found.items() if share >= FULL]
    chosen = max(full) if full else max(found, key=found.__getitem__)
    return chosen, found[chosen]


def _few_steps(plan: Plan) -> Plan:
    """Of a plan at most 32 steps at equal distances."""
    steps = [plan.step(int(n)) for n in np.unique(np.linspace(0, plan.num_steps - 1, min(plan.num_steps, 32)).astype(int))]
    return Plan(np.concatenate(steps), np.concatenate([[0], np.cumsum([len(step) for step in steps])]), plan.sha256)


def _rows(plan: Plan, lengths: Items, world_size: int, capacity: int, longest: int, one_item: bool) -> Iterator[tuple[int, int, int]]:
    """(tokens, pieces, tokens of the longest piece) of every row, of all ranks; of steps at equal distances where there are very many."""
    for step in np.unique(np.linspace(0, plan.num_steps - 1, min(plan.num_steps, _MOST_STEPS)).astype(int)):
        for ranks in pack(np.asarray(lengths)[plan.step(int(step))], world_size, capacity, longest, one_item):
            for row in ranks:
                sizes = [len(piece) for piece in row]
                yield sum(sizes), len(sizes), max(sizes)


def _up(count, multiple: int):  # type: ignore[no-untyped-def]
    """The next multiple; of a number or of an array."""
    return -(-count // multiple) * multiple


def _ladder(rounded: npt.NDArray[np.int64], real: int, most: int) -> tuple[int, ...]:
    """The lengths for rows of these (rounded) tokens that pad least: for 1, 2, … lengths until FULL of all is real. Dynamic programming over distinct tokens."""
    sizes, counts = np.unique(rounded, return_counts=True)
    rows_up_to = np.cumsum(counts)
    # cost[j]: least tokens of the rows up to size j where size j is a length; with one length more each round.
    cost = sizes * rows_up_to
    chosen = [[int(size)] for size in sizes]
    for _ in range(most - 1):
        if real >= FULL * cost[-1]:
            break
        after = cost[:, None] + sizes[None, :] * (rows_up_to[None, :] - rows_up_to[:, None])  # (length before, this one)
        after = np.where(np.arange(len(sizes))[:, None] < np.arange(len(sizes)), after, np.iinfo(np.int64).max)
        before = after.argmin(axis=0)
        better = after.min(axis=0) < cost
        cost = np.where(better, after.min(axis=0), cost)
        chosen = [[*chosen[before[j]], int(sizes[j])] if better[j] else chosen[j] for j in range(len(sizes))]
    return tuple(chosen[-1])

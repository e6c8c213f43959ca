"""Which pieces of which items go into which row: a pure function of a step's lengths, the world size and the row's capacity.

Nothing is dropped and every rank gets the same number of micro-steps: ranks meet in collectives, so one row less is a hang.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil

import numpy as np
import numpy.typing as npt


@dataclass(slots=True, unsafe_hash=True)  # frozen ones take three times as long to make, and a step makes hundreds
class Piece:
    """Tokens [start, end) of the step's item number `item`; `counts` is False for filler, whose loss weight is 0."""

    item: int
    start: int
    end: int
    counts: bool = True

    def __len__(self) -> int:
        return self.end - self.start


Row = list[Piece]


def pack(lengths: npt.ArrayLike, world_size: int, capacity: int, longest: int | None = None, one_item: bool = False) -> list[list[Row]]:
    """rows[micro_step][rank] for one optimiser step of items with these token counts.

    Rows hold at most `capacity` tokens; items over `longest` (default: the capacity) are cut into pieces that overlap by one token,
    so that the first target of a later piece still has a token to be predicted from. Ranks are balanced by tokens + tokens²/capacity:
    linear layers cost the first, attention within an item the second. `one_item`: no row holds two pieces, and the rows of a
    micro-step are of like length: for models whose items would see each other.
    """
    item, start, end = _cut(np.asarray(lengths), min(capacity, longest or capacity))
    size = end - start
    order = np.argsort(-size, kind="stable")  # pieces stand in the order of items; so do equal lengths
    sizes: list[int] = size[order].tolist()
    rows = [[n] for n in range(len(sizes))] if one_item else fewest_rows(sizes, capacity)
    places, items, starts, ends = order.tolist(), item.tolist(), start.tolist(), end.tolist()

    def made(row: list[int]) -> Row:
        return [Piece(items[n], starts[n], ends[n]) for n in sorted([places[n] for n in row])]

    if world_size == 1:  # one rank computes all rows, however they are filled
        return [[made(row)] for row in rows]
    micro_steps = ceil(len(rows) / world_size)
    cost = (size[order] + size[order] ** 2 / capacity).tolist()
    if not one_item:
        rows = [row for row in _balance(sizes, cost, micro_steps * world_size, capacity) or rows if row]
    costs = [sum([cost[n] for n in row]) for row in rows]
    dear_first = sorted(range(len(rows)), key=costs.__getitem__, reverse=True)
    shortest = places[-1]
    num_filler = micro_steps * world_size - len(rows)
    filler = [[Piece(items[shortest], starts[shortest], ends[shortest], counts=False)] for _ in range(num_filler)]
    return _deal([made(rows[n]) for n in dear_first] + filler, [costs[n] for n in dear_first] + [cost[-1]] * num_filler, world_size)


def fewest_rows(lengths: list[int], capacity: int) -> list[list[int]]:
    """Rows of indices for lengths sorted from long to short: filled exactly where two pieces can do it, or by best fit if that needs fewer."""
    rows = exact_fit(lengths, capacity)
    if len(rows) > ceil(sum(lengths) / capacity):
        rows = min(rows, best_fit(lengths, capacity), key=len)
    return rows


def exact_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Row after row: the longest piece that fits, until one piece or a pair fills what is left to the last token.

    Many short pieces (questions) leave best fit a few tokens a row; here most rows end full. Bit l of `there` says that a piece of l tokens
    is left, bit capacity − l of `mirrored` too: one shift and one AND find the pairs of a given sum.
    """
    left: dict[int, list[int]] = {}
    for n, length in enumerate(lengths):
        left.setdefault(length, []).append(n)
    there = sum(1 << length for length in left)
    mirrored = sum(1 << (capacity - length) for length in left)
    rows = []
    while there:
        row: list[int] = []
        free = capacity
        while free and there:
            longest = there.bit_length() - 1
            if longest > free:
                longest = (there & ((2 << free) - 1)).bit_length() - 1  # -1: nothing fits
                if longest < 0:
                    break
            take: tuple[int, ...] = (longest,)
            if longest < free <= 2 * longest and (pairs := there & (mirrored >> (capacity - free))):
                longer = pairs.bit_length() - 1
                if 2 * longer != free or len(left[longer]) > 1:  # else it is its own partner, and there is one only
                    take = (longer, free - longer)
            for length in take:
                stack = left[length]
                row.append(stack.pop())
                if not stack:
                    there ^= 1 << length
                    mirrored ^= 1 << (capacity - length)
                free -= length
        rows.append(row)
    return rows


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing for lengths sorted from long to short: bins of indices. n log n."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for n, length in enumerate(lengths):
        at = bisect_left(room, (length, -1))
        if at < len(room):
            free, target = room.pop(at)
            bins[target].append(n)
        else:
            free, target = capacity, len(bins)
            bins.append([n])
        insort(room, (free - length, target))
    return bins


def _cut(lengths: npt.NDArray[np.int64], longest: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(item, start, end) of all pieces, in the order of items."""
    if lengths.max(initial=0) <= longest:
        return np.arange(len(lengths)), np.zeros(len(lengths), dtype=np.int64), lengths
    pieces = _pieces(lengths, longest)
    item = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(len(item)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * (longest - 1)
    return item, start, np.minimum(start + longest, lengths[item])


def _pieces(lengths: npt.NDArray[np.int64], longest: int) -> npt.NDArray[np.int64]:
    return np.where(lengths > longest, -(-(lengths - 1) // (longest - 1)), 1)


def num_pieces(lengths: npt.NDArray[np.int64], capacity: int) -> int:
    """Of a step's items: so many ranks can have work."""
    return int(_pieces(lengths, capacity).sum())


def _deal(rows: list[Row], costs: list[float], world_size: int) -> list[list[Row]]:
    """Rows from dear to cheap: neighbours in cost meet in one micro-step, and the dearest goes to the rank that has had least so far."""
    totals = [0.0] * world_size
    grid = []
    for first in range(0, len(rows), world_size):
        ranks = sorted(range(world_size), key=totals.__getitem__)
        micro_step: list[Row] = [[] for _ in ranks]
        for n, rank in enumerate(ranks):
            micro_step[rank] = rows[first + n]
            totals[rank] += costs[first + n]
        grid.append(micro_step)
    return grid


def _balance(sizes: list[int], cost: list[float], num_rows: int, capacity: int) -> list[list[int]] | None:
    """Longest piece first onto the cheapest row that has room; None where some piece then finds no room."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    free = [capacity] * num_rows
    open_rows = [(0.0, n) for n in range(num_rows)]
    heapify(open_rows)
    full: list[tuple[int, float, int]] = []  # (−free, cost, row) of rows without room for the last piece; a shorter one may fit
    for piece, size in enumerate(sizes):
        while full and -full[0][0] >= size:
            _, total, target = heappop(full)
            heappush(open_rows, (total, target))
        while open_rows and free[open_rows[0][1]] < size:
            total, target = heappop(open_rows)
            heappush(full, (-free[target], total, target))
        if not open_rows:
            return None
        total, target = heappop(open_rows)
        rows[target].append(piece)
        free[target] -= size
        heappush(open_rows, (total + cost[piece], target))
    return rows

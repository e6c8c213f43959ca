"""Which pieces of which items go into which row: a pure function of a step's lengths, the world size and the row's capacity.

Nothing is dropped and every rank gets the same number of micro-steps: ranks meet in collectives, so one row less is a hang.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
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
    if one_item:
        return _one_by_one(np.asarray(lengths).tolist(), world_size, min(capacity, longest or capacity))
    pieces = [
        piece
        for item, length in enumerate(np.asarray(lengths).tolist())
        for piece in _pieces(item, length, min(capacity, longest or capacity))
    ]
    pieces.sort(key=lambda p: (-len(p), p.item, p.start))
    bins = best_fit([len(p) for p in pieces], capacity)
    micro_steps = ceil(len(bins) / world_size)
    rows = _balance(pieces, micro_steps * world_size, capacity) or [[pieces[n] for n in members] for members in bins]
    shortest = pieces[-1]
    rows += [[] for _ in range(micro_steps * world_size - len(rows))]
    filler = Piece(shortest.item, shortest.start, shortest.end, counts=False)
    rows = [sorted(row, key=lambda p: (p.item, p.start)) or [filler] for row in rows]
    rows.sort(key=lambda row: _cost(row, capacity), reverse=True)
    # Neighbours in cost meet in one micro-step; every other one is reversed, so that no rank always gets the dearest.
    grid = [rows[n : n + world_size] for n in range(0, len(rows), world_size)]
    return [row[::-1] if n % 2 else row for n, row in enumerate(grid)]


def _one_by_one(lengths: list[int], world_size: int, longest: int) -> list[list[Row]]:
    """Rows of one piece, from long to short; every other micro-step is reversed, so that no rank always gets the longest."""
    pieces = [piece for item, length in enumerate(lengths) for piece in _pieces(item, length, longest)]
    pieces.sort(key=lambda p: (-len(p), p.item, p.start))
    shortest = pieces[-1]
    pieces += [Piece(shortest.item, shortest.start, shortest.end, counts=False)] * (-len(pieces) % world_size)
    grid = [[[piece] for piece in pieces[n : n + world_size]] for n in range(0, len(pieces), world_size)]
    return [ranks[::-1] if n % 2 else ranks for n, ranks in enumerate(grid)]


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


def _pieces(item: int, length: int, longest: int) -> list[Piece]:
    if length <= longest:
        return [Piece(item, 0, length)]
    return [Piece(item, start, min(start + longest, length)) for start in range(0, length - 1, longest - 1)]


def _cost(row: Row, capacity: int) -> float:
    return sum(len(p) + len(p) ** 2 / capacity for p in row)


def _balance(pieces: list[Piece], num_rows: int, capacity: int) -> list[Row] | None:
    """Longest piece first onto the cheapest row that has room; None where some piece then finds no room."""
    rows: list[Row] = [[] for _ in range(num_rows)]
    free = [capacity] * num_rows
    heap = [(0.0, n) for n in range(num_rows)]
    heapify(heap)
    for piece in pieces:
        full = []
        while heap and free[heap[0][1]] < len(piece):
            full.append(heappop(heap))
        if not heap:
            return None
        cost, target = heappop(heap)
        rows[target].append(piece)
        free[target] -= len(piece)
        heappush(heap, (cost + len(piece) + len(piece) ** 2 / capacity, target))
        for entry in full:
            heappush(heap, entry)
    return rows

"""How full rows are, and how evenly ranks are loaded: python -m benchmarks.pack_fill

100,000 lengths (benchmarks/mix.py), 1,000 and 10,000 at a time, in rows of 2,048, 4,096 and 8,192 tokens: data/rows/packing.py, TRL's
`bfd_split` and next-fit. Then steps of 256 items on 2, 8 and 64 ranks: the busiest rank's tokens against the mean.
Goal: rows 99.4, 99.0 and 98.5 % full at 1,000 and 99.85 % at 10,000, no token dropped, at most as many rows as TRL, and the busiest rank
within 1.1 of the mean where a step holds two full rows a rank. Writes benchmarks/results/pack_fill.json.
"""

from math import ceil
from statistics import median
from typing import Any

import numpy as np

from benchmarks.mix import mixed_lengths, token_table
from benchmarks.peers import peer
from benchmarks.result_file import write_result_file
from console import door, progress
from data.rows.packing import Row, pack

NUM_LENGTHS, STEP_ITEMS = 100_000, 256
CAPACITIES = (2048, 4096, 8192)
GOALS = {1_000: (0.994, 0.990, 0.985), 10_000: (0.9985, 0.9985, 0.9985)}
LARGE_STEP = 2  # full rows a rank
BUSIEST = 1.1


def next_fit(lengths: list[int], capacity: int) -> int:
    """Rows where each item follows the one before it if it still fits; items longer than a row are cut."""
    rows, free = 0, 0
    for length in lengths:
        while length > 0:
            part = min(length, capacity)
            if part > free:
                rows, free = rows + 1, capacity
            free, length = free - part, length - part
    return rows


def tokens_of(row: Row) -> int:
    """Tokens of items in a row: a later piece begins with one token that the piece before it ends with."""
    return sum(len(piece) - (piece.start > 0) for piece in row if piece.counts)


def fill(window: int, capacity: int) -> dict[str, Any]:
    lengths = mixed_lengths(NUM_LENGTHS)
    packed_by_trl = peer("trl.data_utils")._pack_bfd
    rows = {"ours": 0, "trl": 0, "next_fit": 0, "least": 0}
    covered = 0
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        packed = [row for ranks in pack(part, 1, capacity) for row in ranks]
        assert max(sum(map(len, row)) for row in packed) <= capacity
        rows["ours"] += len(packed)
        covered += sum(map(tokens_of, packed))
        rows["trl"] += len(packed_by_trl(token_table(part), capacity, "split"))
        rows["next_fit"] += next_fit(part.tolist(), capacity)
        rows["least"] += ceil(part.sum() / capacity)
    total = int(lengths.sum())
    return {"rows": rows, "fill": {name: round(total / (n * capacity), 5) for name, n in rows.items()}, "dropped": total - covered}


def busiest(world_size: int, capacity: int) -> dict[str, Any]:
    lengths = mixed_lengths(NUM_LENGTHS)
    ratios, filled = [], []
    for start in range(0, len(lengths) - STEP_ITEMS + 1, STEP_ITEMS):
        grid = pack(lengths[start : start + STEP_ITEMS], world_size, capacity)
        tokens = np.array([[tokens_of(row) for row in ranks] for ranks in grid]).sum(axis=0)
        ratios.append(tokens.max() / tokens.mean())
        filled.append(tokens.sum() / (len(grid) * world_size * capacity))
    rows_a_rank = lengths[:STEP_ITEMS].sum() / capacity / world_size
    return {
        "median": round(median(ratios), 4),
        "worst": round(max(ratios), 4),
        "fill": round(float(np.mean(filled)), 4),
        "full_rows_a_rank": round(float(rows_a_rank), 2),
    }


def main(argv: list[str] | None = None) -> None:
    windows, ranks = {}, {}
    with progress() as bar:
        task = bar.add_task("pack_fill", total=len(GOALS) * len(CAPACITIES) + 3 * len(CAPACITIES))
        for window in GOALS:
            for capacity in CAPACITIES:
                windows[f"{window} items, rows of {capacity}"] = fill(window, capacity)
                bar.advance(task)
        for world_size in (2, 8, 64):
            for capacity in CAPACITIES:
                ranks[f"{world_size} ranks, rows of {capacity}"] = busiest(world_size, capacity)
                bar.advance(task)
    goals = [goal for of in GOALS.values() for goal in of]
    full = all(w["fill"]["ours"] >= goal for w, goal in zip(windows.values(), goals, strict=True))
    no_more = all(w["rows"]["ours"] <= w["rows"]["trl"] and w["dropped"] == 0 for w in windows.values())
    even = all(r["median"] <= BUSIEST for r in ranks.values() if r["full_rows_a_rank"] >= LARGE_STEP)
    goal = {
        "fill": ">= 0.994 / 0.990 / 0.985 at 1,000; >= 0.9985 at 10,000",
        "rows": "<= trl",
        "dropped": 0,
        "busiest rank, median": f"<= {BUSIEST} x mean from {LARGE_STEP} full rows a rank",
    }
    write_result_file("pack_fill", {"windows": windows, "steps_of_256": ranks}, goal, full and no_more and even)


if __name__ == "__main__":
    door(main)

"""Static shapes: the ladder pads least, boundaries and targets have fixed counts, and what an item is stays."""

from itertools import combinations

import numpy as np
import pytest

from benchmarks.mix import mixed_lengths
from benchmarks.tiny import made_store, plan_of
from data.rows.flat_rows import rank_rows
from data.rows.static_rows import FULL, Shapes, _ladder, best_row_tokens, fill, static_shapes

LENGTHS = mixed_lengths(1200)


def test_no_other_ladder_of_so_many_lengths_pads_less() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.integers(1, 15, 20) * 64

        def padded(ladder: tuple[int, ...], rows: np.ndarray = rows) -> int:
            return sum(min(n for n in ladder if n >= row) for row in rows)

        shorter = sorted(set(rows.tolist()) - {int(rows.max())})
        for most in (1, 2, 3):
            others = (found for k in range(most) for found in combinations(shorter, k))
            assert padded(_ladder(rows, 0, most)) == min(padded((*other, int(rows.max()))) for other in others)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("one_item", [False, True])
def test_rows_of_a_stage_have_few_shapes(world_size: int, one_item: bool) -> None:
    store, plan, capacity = made_store(LENGTHS, True), plan_of(len(LENGTHS), 120), 2048
    shapes = static_shapes(plan, store.lengths, world_size, capacity, capacity, one_item)
    rows = [row for rank in range(world_size) for row in rank_rows(plan, store, rank, world_size, capacity, "token", one_item=one_item)]
    padded = [shapes.pad(row) for row in rows]
    assert {len(row["input_ids"]) for row in padded} <= set(shapes.lengths) and len(shapes.lengths) <= 9
    assert {len(row["boundaries"]) for row in padded} == {shapes.pieces + 1}
    assert len({row["num_targets"] for row in padded}) <= 16 * len(shapes.lengths)
    for row, static in zip(rows, padded, strict=True):
        length, real = len(static["input_ids"]), len(row["input_ids"])
        assert np.array_equal(static["cu_seqlens"], row["cu_seqlens"]) and np.array_equal(
            static["boundaries"][: len(row["cu_seqlens"])], row["cu_seqlens"]
        )
        sizes = np.diff(static["boundaries"])
        assert static["boundaries"][-1] == length and sizes.min() >= 0 and sizes.max() <= static["longest"] == shapes.longest
        assert all(
            len(static[name]) == length and np.array_equal(static[name][:real], row[name])
            for name in ("input_ids", "position_ids", "loss_weight")
        )
        assert not static["loss_weight"][real:].any() and static["num_targets"] >= np.count_nonzero(row["loss_weight"])
    share = sum(len(row["input_ids"]) for row in rows) / sum(len(row["input_ids"]) for row in padded)
    assert fill(shapes, plan, store.lengths, world_size, capacity, capacity, one_item) == pytest.approx(share)
    # Balanced over ranks, rows are of more lengths; single items of 20 to 2,048 tokens of many more than nine.
    assert share >= (0.85 if one_item else FULL - 0.03 if world_size > 1 else FULL)


def test_what_was_not_looked_at_finds_a_shape() -> None:
    """Of very many steps some are looked at: a longer row, or more items, get the next shape instead of a wrong one."""
    shapes = Shapes((64,), 3, 40)
    row = {
        "input_ids": np.arange(70),
        "position_ids": np.arange(70),
        "loss_weight": np.ones(70),
        "cu_seqlens": np.array([0, 10, 20, 30, 70], dtype=np.int32),
    }
    static = shapes.pad(row)
    assert len(static["input_ids"]) == 96 and static["boundaries"].tolist() == [0, 10, 20, 30, 70, 96, 96]


def test_row_tokens_are_as_long_as_rows_stay_full() -> None:
    """Steps of equal tokens take one long row each; where no length is full the fullest is taken."""
    documents = np.full(4050, 100)
    assert best_row_tokens([(plan_of(4050, 150), documents)], 1, 100, 16384) == (16384, pytest.approx(15000 / 15008))
    chosen, share = best_row_tokens([(plan_of(len(LENGTHS), 120), LENGTHS)], 1, int(LENGTHS.max()), 16384)
    assert chosen == 16384 and share >= FULL
    uneven = np.random.default_rng(0).integers(100, 2000, 400)
    assert best_row_tokens([(plan_of(400, 3), uneven)], 1, 2000, 16384)[1] < FULL
    assert best_row_tokens([(plan_of(4, 1), np.full(4, 3000))], 1, 3000, 16384)[0] >= 4096  # a row holds the longest item


def test_attention_is_told_of_items_that_are_longer_than_was_known() -> None:
    """As a question behind a passage, or in another wording: a kernel that is told less leaves queries out."""
    shapes = Shapes((64, 1024), 4, 24)
    for lengths, longest in (([24, 8], 24), ([624, 24], 624)):
        row = {"input_ids": np.zeros(sum(lengths), dtype=np.int64), "loss_weight": np.ones(sum(lengths), dtype=np.float32)}
        assert shapes.pad({**row, "cu_seqlens": np.cumsum([0, *lengths]).astype(np.int32)})["longest"] == longest

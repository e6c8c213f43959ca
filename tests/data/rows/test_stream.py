"""The real Ray pipeline: every item of a plan exactly as often as planned, in order, at 1, 2 and 3 workers."""

from collections import Counter

import numpy as np
import pytest

from data.rows.flat_rows import rank_rows
from tests.helpers.planned import planned

CAPACITY = 96


@pytest.fixture(scope="module")
def stage_files(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    from data.rows.stream import StreamSpec

    folder = tmp_path_factory.mktemp("stream")
    plan, store = planned(folder, people=30, epochs=5, batch_items=13)
    return plan, store, StreamSpec(str(folder / "plan.npz"), str(folder / "tokens"), plan.num_steps, CAPACITY, "example")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_planned_item_once_through_ray(ray_cluster: str, stage_files, world_size: int) -> None:  # type: ignore[no-untyped-def]
    from data.rows.stream import RankShares, iterate, step_spans

    plan, store, spec = stage_files
    shares = RankShares({"s": spec}).configure({"s": step_spans(spec)}, world_size, None, None)
    rows = [list(iterate(shares[rank]["s"], timeout_s=60)) for rank in range(world_size)]
    for rank in range(world_size):
        expected = list(rank_rows(plan, store, rank, world_size, CAPACITY, "example"))
        assert [(r["step"], r["micro_step"]) for r in rows[rank]] == [(r["step"], r["micro_step"]) for r in expected]
        assert all(np.array_equal(a[key], b[key]) for a, b in zip(rows[rank], expected, strict=True) for key in a)
    # Independently of packing: count the items by their tokens, step by step, over all ranks.
    for step in range(plan.num_steps):
        seen: Counter[bytes] = Counter()
        for row in (row for share in rows for row in share if row["step"] == step):
            for start, end in zip(row["cu_seqlens"], row["cu_seqlens"][1:], strict=False):
                if row["loss_weight"][start:end].any():
                    seen[row["input_ids"][start:end].tobytes()] += 1
        assert seen == Counter(store.item(int(n)).astype(np.int64).tobytes() for n in plan.step(step))
    assert len({len(share) for share in rows}) == 1  # as many micro-steps on every rank


def test_rows_of_one_item_carry_the_same_weights(ray_cluster: str, stage_files) -> None:  # type: ignore[no-untyped-def]
    """The stream that a model with leaking items is given: the same tokens with the same weights, step by step, each item alone."""
    import dataclasses

    from data.rows.stream import RankShares, iterate, step_spans

    _, _, spec = stage_files
    specs = {"packed": spec, "alone": dataclasses.replace(spec, one_item=True)}
    shares = RankShares(specs).configure({name: step_spans(of) for name, of in specs.items()}, 2, None, None)
    seen: dict[str, Counter[tuple[int, bytes, bytes]]] = {name: Counter() for name in specs}
    for name in specs:
        for share in shares:
            for row in iterate(share[name], timeout_s=60):
                assert name == "packed" or len(row["cu_seqlens"]) == 2
                for start, end in zip(row["cu_seqlens"], row["cu_seqlens"][1:], strict=False):
                    if row["loss_weight"][start:end].any():
                        seen[name][row["step"], row["input_ids"][start:end].tobytes(), row["loss_weight"][start:end].tobytes()] += 1
    assert seen["packed"] == seen["alone"] and seen["alone"]


def test_noise_travels_with_its_targets(ray_cluster: str, stage_files) -> None:  # type: ignore[no-untyped-def]
    import dataclasses

    from data.rows.flat_rows import Reading
    from data.rows.stream import RankShares, iterate, step_spans

    plan, store, spec = stage_files
    noisy = dataclasses.replace(spec, reading=Reading(input_noise=0.3, seed=5))
    [only] = RankShares({"s": noisy}).configure({"s": step_spans(noisy)}, 1, None, None)
    expected = rank_rows(plan, store, 0, 1, CAPACITY, "example", reading=noisy.reading)
    rows = list(zip(iterate(only["s"], timeout_s=60), expected, strict=True))
    assert all(np.array_equal(a[key], b[key]) for a, b in rows for key in b) and all("target_ids" in a for a, _ in rows)
    assert any(not np.array_equal(a["input_ids"], a["target_ids"]) for a, _ in rows)


@pytest.mark.parametrize("first_step", [0, 11])
def test_several_tasks_make_one_stream(ray_cluster: str, stage_files, monkeypatch: pytest.MonkeyPatch, first_step: int) -> None:  # type: ignore[no-untyped-def]
    import dataclasses

    import data.rows.stream
    from data.rows.stream import RankShares, iterate, step_spans

    plan, store, spec = stage_files
    monkeypatch.setattr(data.rows.stream, "_FIRST_STEPS", (1, 2))
    monkeypatch.setattr(data.rows.stream, "_SPAN_STEPS", 5)
    monkeypatch.setattr(data.rows.stream, "_BLOCK_BYTES", 4096)
    some = dataclasses.replace(spec, first_step=first_step)
    spans = step_spans(some)
    assert spans.materialize().num_blocks() == 2 + -(-(plan.num_steps - first_step - 3) // 5) > 3
    [only] = RankShares({"s": some}).configure({"s": spans}, 1, None, None)
    for ours, expected in zip(iterate(only["s"], 60), rank_rows(plan, store, 0, 1, CAPACITY, "example", first_step), strict=True):
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            assert np.array_equal(ours[key], value) and getattr(ours[key], "dtype", int) == getattr(value, "dtype", int), key


def test_starts_at_a_step(ray_cluster: str, stage_files) -> None:  # type: ignore[no-untyped-def]
    import dataclasses

    from data.rows.stream import RankShares, iterate, step_spans

    plan, store, spec = stage_files
    late = dataclasses.replace(spec, first_step=plan.num_steps - 3)
    [only] = RankShares({"s": late}).configure({"s": step_spans(late)}, 1, None, None)
    assert [row["step"] for row in iterate(only["s"], 60)] == [
        row["step"] for row in rank_rows(plan, store, 0, 1, CAPACITY, "example", plan.num_steps - 3)
    ]


def test_rays_default_split_would_lose_rows(ray_cluster: str) -> None:
    """The twin, and the reason for RankShares: equal splits drop the remainder without a word."""
    import ray

    streams = ray.data.range(103).streaming_split(4, equal=True)

    @ray.remote
    def count(stream) -> int:  # type: ignore[no-untyped-def]
        return sum(1 for _ in stream.iter_rows())

    assert sum(ray.get([count.remote(stream) for stream in streams], timeout=100)) < 103


def test_no_rows_is_an_error_that_names_the_cause(ray_cluster: str) -> None:
    import time

    from console import RunError
    from data.rows.stream import iterate

    class Stuck:
        def iter_batches(self, **_):  # type: ignore[no-untyped-def]
            time.sleep(5)
            yield from ()

    with pytest.raises(RunError, match="CPUs"):
        list(iterate(Stuck(), timeout_s=0.2))

"""What pads rows is priced, where the trainer will pad them."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.measure import calibration_of
from cluster.plan import question_of
from cluster.setups import offer
from data.curriculum.plan import Plan
from data.planning.plan_report import sampled_steps
from data.rows.packing import pack
from data.rows.static_rows import fill, static_shapes
from tests.cluster.test_plan import asked, experiment


def test_padding_is_priced_where_rows_will_be_padded() -> None:
    """Against the ladder that the trainer makes of the same steps: tokens of the fullest rank, the step's time, and what hides communication."""
    question, hardware = asked()
    work, row_tokens = question.workload.stages[0], 2048
    steps = sampled_steps(work.plan, 8)
    few = Plan(np.concatenate([work.plan.step(n) for n in steps]), np.cumsum([0, *(len(work.plan.step(n)) for n in steps)]), "")
    shapes = static_shapes(few, work.lengths, 8, row_tokens, row_tokens)
    grids = [[[sum(map(len, row)) for row in ranks] for ranks in pack(work.lengths[work.plan.step(n)], 8, row_tokens)] for n in steps]
    fullest = [max(sum(map(shapes.length, rank)) for rank in zip(*grid, strict=True)) for grid in grids]
    means = [int(work.lengths[work.plan.step(n)].sum()) / 8 for n in steps]
    padded, exact = work.load(8, row_tokens, static=True), work.load(8, row_tokens)
    mean = work.tokens / work.steps / 8
    assert padded.tokens == pytest.approx(mean * np.mean(np.divide(fullest, means)), rel=1e-3)  # shares are rounded to 3 digits
    assert (
        padded.fill == pytest.approx(fill(shapes, few, work.lengths, 8, row_tokens, row_tokens), rel=1e-3) and padded.fill < 1 == exact.fill
    )
    assert padded.tokens > exact.tokens and padded.micro_steps == exact.micro_steps
    set_up = replace(question.file, row_tokens=row_tokens)
    offers = {wanted: offer(replace(question, shapes=wanted), set_up, hardware) for wanted in ("auto", "static", "exact")}  # type: ignore[arg-type]
    assert offers["auto"] == offers["static"] and offers["auto"].phases.training > offers["exact"].phases.training  # type: ignore[union-attr]
    assert offers["auto"].break_even < offers["exact"].break_even


def test_rows_are_packed_and_padded_where_the_trainer_does_so() -> None:
    """(rows of one item, padded) on a GPU and on CPUs; kernels that start a state anew with each item are for GPUs, and not for Mamba-1's scan."""
    gpu, cpu = asked()[1], replace(asked()[1], chip=None, seconds_per_flop=1e-11)
    state_space, scan = {"inner_size": 8192}, {"inner_size": 8192, "scans": True}
    for overrides, shape, on_gpu, on_cpu in (
        ([], {}, (False, True), (False, False)),
        (["trainer.shapes=static"], {}, (False, True), (False, True)),
        (["trainer.shapes=exact"], {}, (False, False), (False, False)),
        (["trainer.packing=one_item"], {}, (True, False), (True, False)),
        (["trainer.packing=one_item", "trainer.shapes=static"], {}, (True, True), (True, True)),
        ([], state_space, (False, True), (True, False)),
        ([], scan, (True, False), (True, False)),
        (["trainer.packing=packed"], scan, (False, True), (False, False)),
    ):
        question = question_of(experiment("7b", *overrides), gpu)
        question = replace(question, shape=replace(question.shape, **shape))  # type: ignore[arg-type]
        for hardware, (one_item, static) in ((gpu, on_gpu), (cpu, on_cpu)):
            assert question.one_item(hardware) is one_item, (overrides, shape)
            load, work = question.load(question.workload.stages[0], 2048, hardware), question.workload.stages[0]
            assert load == work.load(8, 2048, static, one_item) and (load.fill < 1) is static, (overrides, shape)


def test_rows_of_one_item_are_counted_as_the_trainer_deals_them() -> None:
    """Micro-steps and the fullest rank, against the rows themselves; packed rows (the twin) need far fewer micro-steps."""
    work = asked()[0].workload.stages[0]
    steps = sampled_steps(work.plan, 8)
    grids = [pack(work.lengths[work.plan.step(n)], 8, 2048, one_item=True) for n in steps]
    alone, packed = work.load(8, 2048, one_item=True), work.load(8, 2048)
    assert (
        alone.micro_steps == pytest.approx(np.mean([len(grid) for grid in grids]), abs=0.01) and alone.micro_steps > 5 * packed.micro_steps
    )
    fullest = [max(sum(len(piece) for row in rank for piece in row if piece.counts) for rank in zip(*grid, strict=True)) for grid in grids]
    means = [int(work.lengths[work.plan.step(n)].sum()) / 8 for n in steps]
    assert alone.tokens == pytest.approx(work.tokens / work.steps / 8 * np.mean(np.divide(fullest, means)), rel=1e-3)


def test_a_speed_measured_with_padding_is_that_of_padded_tokens() -> None:
    """On CPUs seconds a FLOP are what is measured: real tokens of a padded row take longer, by its padding and no more."""
    question, hardware = asked()
    cpu, work = replace(hardware, chip=None), question.workload.stages[0]
    rows = [{"step_s": 2.0, "tokens": work.tokens / work.steps, "memory_gib": 3.0}]
    each = [calibration_of(rows, replace(question, shapes=wanted), work, cpu).seconds_per_flop for wanted in ("static", "exact")]  # type: ignore[arg-type]
    assert each[0] == pytest.approx(each[1] * work.load(8, question.file.row_tokens, static=True).fill)  # type: ignore[operator]

"""The modelled speed against published rows, and its anchors."""

from dataclasses import replace

import pytest

from benchmarks.cost_model import GOAL, Published, fitted_efficiency, read_rows
from cluster.cost.chips import _FP32_FLOPS, CHIPS, make_hardware, parse_gpus
from cluster.cost.memory import SetUp
from cluster.cost.model_shape import ModelShape
from cluster.cost.speed import StepLoad, break_even_tokens, communicate_s, compute_s_per_token, step_time
from console import UserError

LLAMA_70B = ModelShape(8192, 80, 28672, 64, 8, 128, 32000)
LLAMA_7B = ModelShape(4096, 32, 11008, 32, 32, 128, 32000)
ROWS = read_rows()
OUTSIDE = "fms-fsdp llama2-13b, items of 4096, 128×A100-80G, 1 a micro-step"  # small micro-steps, network unknown; +20 %


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_published_rows(row: Published) -> None:
    """50 of the 62 are held out: no number was fitted to them."""
    if row.name == OUTSIDE:
        assert GOAL < row.error() < 0.25  # documented as such: docs/cluster.md must change when this does
    else:
        assert abs(row.error()) <= GOAL, f"{row.error():+.1%}"


def test_enough_rows_are_held_out() -> None:
    assert sum(row.fitted for row in ROWS) == 12 and len(ROWS) == 62


def test_the_chips_hold_what_is_fitted() -> None:
    for chip in ("A100-80G", "H100"):
        assert CHIPS[chip].efficiency == fitted_efficiency(ROWS, chip)
    assert CHIPS["A100-40G"].efficiency == CHIPS["A100-80G"].efficiency and CHIPS["H200"].efficiency == CHIPS["H100"].efficiency


def test_another_efficiency_would_not_do() -> None:
    """The twin: the rows do refuse a wrong number."""
    assert any(abs(row.error(0.35)) > GOAL for row in ROWS)
    assert any(abs(row.error(0.80)) > GOAL for row in ROWS)


def test_flops_of_the_published_rows() -> None:
    """llm-foundry prints MFU beside its tokens/s: 42.57 % at 1,039 (70B), 46.44 % at 10,643 (7B), items of 2,048."""
    for name, mfu in (("mpt-70b, items of 2048, 64×H100", 0.4257), ("mpt-7b, items of 2048, 8×H100", 0.4644)):
        row = next(row for row in ROWS if name in row.name)
        assert row.tokens_per_s * row.shape.flops_per_token(row.load.attended) / 989e12 == pytest.approx(mfu, rel=0.01)


def test_flops_of_tied_and_untied_models() -> None:
    """The output head counts, tied or not; the input embedding never does."""
    untied, tied = LLAMA_7B, replace(LLAMA_7B, tie_word_embeddings=True)
    assert untied.flops_per_token(0) == tied.flops_per_token(0) == 6 * (untied.parameters - 4096 * 32000 - 65 * 4096)
    assert untied.parameters == 6_738_415_616 and untied.parameters - tied.parameters == 4096 * 32000
    assert LLAMA_70B.parameters == 68_976_648_192
    attention = untied.flops_per_token(1000) - untied.flops_per_token(0)
    assert attention == 12 * 32 * 4096 * 1000


def test_break_even() -> None:
    """About 1,020 tokens with 8 × 400 Gb/s a node, about 32,600 with one link of 100 Gb/s; none on one GPU."""
    set_up = SetUp(3, 4096, recompute=True)
    fast = make_hardware(1024, CHIPS["H100"])
    assert break_even_tokens(LLAMA_70B, set_up, fast) == pytest.approx(1020, rel=0.1)
    slow = make_hardware(1024, CHIPS["H100"], network_gbit=100)
    assert break_even_tokens(LLAMA_70B, set_up, slow) == pytest.approx(32_600, rel=0.1)
    assert break_even_tokens(LLAMA_70B, set_up, make_hardware(1, CHIPS["H100"])) == 0


def test_zero_3_moves_six_bytes_a_parameter() -> None:
    hardware = make_hardware(16, CHIPS["H100"])
    assert communicate_s(LLAMA_7B, 3, hardware) == pytest.approx(6 * LLAMA_7B.parameters / 2 / 400e9)
    assert communicate_s(LLAMA_7B, 2, hardware) * 3 == pytest.approx(communicate_s(LLAMA_7B, 3, hardware))


def test_small_micro_steps_cost() -> None:
    """The same tokens in more micro-steps, or on a slower network, take longer; a measured speed scales all of it."""
    hardware, set_up = make_hardware(64, CHIPS["H100"]), SetUp(3, 4096, recompute=True)
    one = step_time(LLAMA_70B, set_up, StepLoad(8192, 1, 512), hardware).total
    assert step_time(LLAMA_70B, set_up, StepLoad(8192, 8, 512), hardware).total > 1.2 * one
    assert step_time(LLAMA_70B, set_up, StepLoad(8192, 1, 512), replace(hardware, speed=0.5)).total == pytest.approx(2 * one)
    offloaded = step_time(LLAMA_70B, replace(set_up, offload=True), StepLoad(8192, 1, 512), hardware)
    assert offloaded.update > 10 * step_time(LLAMA_70B, set_up, StepLoad(8192, 1, 512), hardware).update


@pytest.mark.parametrize(
    "text, count, chip",
    [
        ("16xH100", 16, "H100"),
        ("1xA100-80G", 1, "A100-80G"),
        ("8×a100-80gb", 8, "A100-80G"),
        ("H200", 1, "H200"),
        ("4xA100", 4, "A100-80G"),
    ],
)
def test_gpus_by_name(text: str, count: int, chip: str) -> None:
    assert parse_gpus(text) == (count, CHIPS[chip])


@pytest.mark.parametrize("text", ["", "0xH100", "8xB9000", "x8", "8", "-1xH100"])
def test_gpus_that_nobody_knows(text: str) -> None:
    with pytest.raises(UserError, match="--gpus"):
        parse_gpus(text)


def test_fp32_takes_the_ordinary_units() -> None:
    """It was timed as bf16: 138 TFLOPS of a chip whose fp32 peak is 19.5."""
    hardware = make_hardware(8, CHIPS["A100-80G"], 8)
    slow = hardware.in_precision(True)
    assert hardware.in_precision(False) is hardware and slow.chip is not None and slow.chip.peak_flops == 19.5e12
    fast, exact = (compute_s_per_token(LLAMA_7B, 2048.0, one, False) for one in (hardware, slow))
    assert 10 < exact / fast < 16 and exact > LLAMA_7B.flops_per_token(2048.0) / 19.5e12
    assert communicate_s(LLAMA_7B, 3, slow) == 2 * communicate_s(LLAMA_7B, 3, hardware)
    assert set(_FP32_FLOPS) == set(CHIPS)

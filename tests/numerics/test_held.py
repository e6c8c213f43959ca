"""The planner's bytes are what engines hold, tensor by tensor, and a closed engine holds nothing."""

import json
from typing import Any

import pytest

from cluster.cost.memory import SetUp, gpu_memory, offloaded_buffers
from cluster.cost.model_shape import ModelShape
from tests.helpers.groups import Groups
from tests.numerics.ranks.held_steps import ALONE, CASES, RANK, made_model, name_of

SHAPE = ModelShape(128, 2, 1024, 4, 2, 32, 1024)
REMAINDER = 0.01
"""Of what is planned: padding of flat buffers (at most 2 × workers elements each), rotary tables, rows, and a few dozen scalars, 5,000 bytes of 500,000 and more."""


@pytest.fixture(scope="module", params=[1, 2])
def facts(request: pytest.FixtureRequest, groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    out = groups.call("tests.numerics.ranks.held_steps", tmp_path_factory.mktemp(f"held{request.param}"), request.param)
    return request.param, json.loads((out / "facts.json").read_text())


def planned(zero_stage: int, precision: str, kind: str, n: int, small: int) -> float:
    """Of one rank: on a CPU both sides are the same memory. `small`: elements of parameters that ZeRO-3 keeps whole beside their shares."""
    set_up = SetUp(zero_stage, 48, offload=kind == "offload", adapter=RANK if kind == "adapter" else 0)
    bytes_ = gpu_memory(SHAPE, set_up, n, fp32=precision == "fp32").kept + (4 if precision == "fp32" else 2) * small
    if kind == "offload":
        share = SHAPE.parameters / n
        bytes_ += 8 * share + sum(offloaded_buffers(SHAPE, set_up, share)) + 2 * SHAPE.largest_parameter * (zero_stage < 3)
    return bytes_


def test_the_shape_is_the_model() -> None:
    assert SHAPE.parameters == sum(p.numel() for p in made_model().parameters())


def test_what_is_planned_is_held(facts: tuple[int, dict[str, Any]]) -> None:
    n, told = facts
    for case in CASES if n > 1 else ALONE:
        found = told[name_of(*case)]
        assert found["held"] == pytest.approx(planned(*case, n, found["small"]), rel=REMAINDER), case


def test_gradients_held_twice_would_be_seen(facts: tuple[int, dict[str, Any]]) -> None:
    """The twin: without immediate_grad_update ZeRO-1 in bf16 holds 2 bytes a weight more. Losses and norms of two steps are the same to the bit;
    ZeRO-2's, which crosses ranks in bf16, are not."""
    n, told = facts
    if n == 1:
        return
    once, twice = told["zero1-bf16"], told["twice"]
    assert twice["held"] - once["held"] == pytest.approx(2 * SHAPE.parameters, rel=REMAINDER)
    assert twice["held"] > (1 + 5 * REMAINDER) * planned(1, "bf16", "", n, 0)
    assert once["steps"] == twice["steps"]
    assert once["steps"] != told["zero2-bf16"]["steps"]


def test_a_closed_engine_holds_nothing(facts: tuple[int, dict[str, Any]]) -> None:
    """Nothing collects behind it; the twin is what it held a moment before."""
    _, told = facts
    for name, found in told.items():
        assert found["left"] < 10_000 < found["held"], (name, found["left"])

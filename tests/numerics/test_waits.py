"""Nothing in a micro-step waits for the device: no operation whose result the host must know, forward or backward, in exact and static shapes."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.rows.flat_rows import Row, step_rows
from data.rows.static_rows import static_shapes
from tests.numerics.ranks import steps
from trainer.step.plain import PlainEngine
from trainer.step.step import row_loss

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "repeat_interleave.Tensor", "bincount")
"""Operations that copy a number, or a count of elements, to the host: on a GPU each waits for all that was asked of it before."""


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += [func.name() for name in WAITS if func.name().removeprefix("aten::").startswith(name)]
        return func(*args, **(kwargs or {}))


def rows(static: bool) -> list[Row]:
    plan, store = steps.made_plan(), steps.made_store()
    pad = static_shapes(plan, store.lengths, 1, steps.CAPACITY, steps.CAPACITY).pad
    return [pad(row) if static else row for row in step_rows(plan, store, 0, 0, 1, steps.CAPACITY, "example")]


@pytest.mark.parametrize("attention", ["by_item", "padded_sdpa"])
@pytest.mark.parametrize("static", [False, True])
def test_a_micro_step_waits_for_nothing(attention: str, static: bool) -> None:
    engine = PlainEngine(steps.made_model(attention), (0.9, 0.95), 0.1, 0.0)
    made = rows(static)
    row_loss(engine, made[0], attention)  # tries the head, once
    with Waits() as waits:
        for row in made:
            loss = row_loss(engine, row, attention)
            engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan")))
    assert waits.found == []
    with Waits() as waits:  # the twin: what a loop that reads each loss does
        float(row_loss(engine, made[0], attention).detach())
    assert waits.found == ["aten::_local_scalar_dense"]

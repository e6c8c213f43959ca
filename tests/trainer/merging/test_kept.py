"""Which differences are added: bounds against a sort, for tensors read in pieces."""

import pytest
import torch

from trainer.merging.residual.kept import ALL, Kept


@pytest.mark.parametrize(("density", "mask"), [(1, 0.01), (0.5, 0.1), (0.25, 0), (0.9, 0.3), (0.001, 0.999)])
def test_bounds_are_those_of_a_sort(density: float, mask: float) -> None:
    values = torch.randn(7, 331, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 3, 331)
    kept, size = Kept(density, mask), values.numel()
    bounds = kept.bounds(lambda: values.split(2), size)
    order = values.abs().flatten().sort().values
    top = int(mask * size)
    bottom = max(0, size - top - int(density * size))
    assert bounds == (float(order[bottom]), float(order[size - top - 1]))
    added = kept.of(values, bounds)
    assert int((added != 0).sum()) == size - top - bottom and torch.equal(added[added != 0], values[added != 0])


def test_what_is_equal_goes_together() -> None:
    values = torch.tensor([0.0, 1.0, -1.0, 1.0, 2.0])
    assert Kept(1, 0.2).of(values, Kept(1, 0.2).bounds(lambda: [values], 5)).tolist() == [0, 1, -1, 1, 0]
    assert Kept(1, 0.4).of(values, Kept(1, 0.4).bounds(lambda: [values], 5)).tolist() == [
        0,
        1,
        -1,
        1,
        0,
    ]  # one of three 1s would be a choice
    assert Kept(1, 0.9).of(values, Kept(1, 0.9).bounds(lambda: [values], 5)).tolist() == [0, 0, 0, 0, 0]


def test_nothing_and_everything() -> None:
    assert ALL.is_all and not Kept(0.5).is_all and not Kept(mask=0.1).is_all
    assert Kept(0.5).bounds(lambda: [torch.empty(0)], 0) == (0.0, 0.0)

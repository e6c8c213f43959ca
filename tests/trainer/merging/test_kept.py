"""Which differences are added: bounds against a sort, for tensors read in pieces."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainer.merging.residual.artefact import _masked
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


def test_rows_that_are_no_differences_do_not_count() -> None:
    """Rows of tokens that the base lacks are the instruct model's weights, a hundred times as large."""
    small, large = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.full((5, 8), 100.0)
    values = torch.cat([small, large])
    weights = SimpleNamespace(shape=lambda name: (55, 8), dtype=lambda name: "F32", chunk=lambda name, start, end: values[start:end])
    known = np.arange(55) < 50
    residual = SimpleNamespace(weights=weights, has_base=known, manifest={"vocabulary": {"tensors": ["embed"]}})
    kept = {name: int((_masked(residual, name, Kept(1, 0.1))(small) != 0).sum()) for name in ("embed", "other")}  # type: ignore[arg-type]
    assert kept == {"embed": 360, "other": 396}  # of 400; the twin masks 44 of 440 values, of which 40 are none of ours


@pytest.mark.parametrize(("size", "density", "mask", "added"), [(1, 0.5, 0.01, 0), (9, 0.1, 0, 0), (100, 0.29, 0, 29), (1, 1, 0.01, 1)])
def test_small_tensors(size: int, density: float, mask: float, added: int) -> None:
    """Of one value a half is none: its bounds were asked for beyond the last one. 0.29 of 100 is 29, which floats put at 28.99…"""
    values = torch.arange(1.0, size + 1)
    kept = Kept(density, mask)
    assert int((kept.of(values, kept.bounds(lambda: [values], size)) != 0).sum()) == added

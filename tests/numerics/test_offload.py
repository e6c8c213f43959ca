"""States in host memory change where the optimiser works, not what it does: losses, norms, weights and moments are those without."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.groups import Groups
from tests.numerics.ranks import rounding
from tests.numerics.ranks.offload_steps import CASES
from tests.numerics.ranks.steps import made_model
from tests.numerics.test_zero import SHAPES
from trainer.step.engine import MOMENTS
from trainer.store.weights import FragmentWeights

WORLD_SIZE = 2
ANOTHER_CLASS = (1, "bf16")
"""Without offload DeepSpeed takes another class for it (BF16_Optimizer), which sums in another order."""


@pytest.fixture(scope="module")
def results(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return groups.call("tests.numerics.ranks.offload_steps", tmp_path_factory.mktemp("offload"), WORLD_SIZE)


def both(results: Path, zero_stage: int, precision: str) -> list[dict[str, Any]]:
    """What was reported with states in host memory, and without."""
    return [json.loads((results / f"zero{zero_stage}-{precision}-{place}.json").read_text()) for place in ("host", "device")]


def moved(results: Path, name: str) -> torch.Tensor:
    """By how much the four steps changed every weight."""
    start, ended = dict(made_model().named_parameters()), FragmentWeights(results / name, SHAPES, WORLD_SIZE)
    return torch.cat([(ended.read(key) - start[key].detach()).flatten() for key in SHAPES])


@pytest.mark.parametrize("zero_stage, precision", [case for case in CASES if case != ANOTHER_CLASS])
def test_offload_is_the_same_training(results: Path, zero_stage: int, precision: str) -> None:
    """Uneven accumulation and clipping in every step: DeepSpeed before 0.19 got ZeRO 1 and 2 with offload and accumulation wrong."""
    ours, theirs = both(results, zero_stage, precision)
    assert ours["steps"] == theirs["steps"] == 4
    # Gradients may be summed in another order on their way to the host; updates are of size 3e-3, so 1e-5 would show one wrong step.
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(ours["losses"]), torch.tensor(theirs["losses"]), **tolerance)
    torch.testing.assert_close(torch.tensor(ours["norms"]), torch.tensor(theirs["norms"]), **tolerance)
    for kind in ("weight", *MOMENTS):
        host, device = (
            FragmentWeights(results / f"zero{zero_stage}-{precision}-{p}", SHAPES, WORLD_SIZE, kind) for p in ("host", "device")
        )
        for name in SHAPES:
            torch.testing.assert_close(host.read(name), device.read(name), **tolerance)


def counting(results: Path, name: str) -> float:
    """How many gradients' elements make up its norm, by AdamW's mean of their squares."""
    squares = FragmentWeights(results / name, SHAPES, WORLD_SIZE, "exp_avg_sq")
    flat = torch.cat([squares.read(key).flatten() for key in SHAPES]).double()
    return float(flat.sum() ** 2 / flat.square().sum())


def apart(first: dict[str, Any], second: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every step: losses, absolute, and norms, relative."""
    losses, norms = (torch.tensor([run[kind] for run in (first, second)], dtype=torch.float64) for kind in ("losses", "norms"))
    return (losses[0] - losses[1]).abs(), (norms[0] / norms[1] - 1).abs()


FIRST_NORM = 22_688**0.5 * 2**-24
"""The root of the number of weights, an fp32 rounding for each addition that another order may change: 9e-6."""


def test_zero_1_in_bf16_is_the_same_up_to_rounding(results: Path) -> None:
    """Two classes of DeepSpeed's with the same mathematics. In the first step they compute the same bits and add them in another order in fp32. Then masters that
    differ in their last fp32 bit may round to other bf16 weights, and from there on every rounding may be another: tests/numerics/ranks/rounding.py says how much that is."""
    ours, theirs = both(results, *ANOTHER_CLASS)
    assert ours["steps"] == theirs["steps"] == 4
    losses, norms = apart(ours, theirs)
    assert losses[0] <= 4.2 * 12 * 2**-24 and norms[0] <= FIRST_NORM  # a dozen items' losses of 4.2
    assert float(losses.max()) <= rounding.LOSSES
    assert float(norms.max()) <= rounding.norms(counting(results, "zero1-bf16-device"))
    host, device = (moved(results, f"zero1-bf16-{place}") for place in ("host", "device"))
    assert torch.nn.functional.cosine_similarity(host, device, dim=0) > rounding.DIRECTION


def test_the_comparison_would_see_a_difference(results: Path) -> None:
    """The twins: gradients that cross ranks in bf16 (ZeRO 2) are seen in the first norm; a step left out in losses and norms; and in the update a hundredth of the
    weights that went the other way."""
    told = both(results, *ANOTHER_CLASS)[1]
    assert apart(told, both(results, 2, "bf16")[1])[1][0] > FIRST_NORM
    late = {kind: told[kind][1:] + told[kind][:1] for kind in ("losses", "norms")}
    losses, norms = apart(told, late)
    assert float(losses.min()) > rounding.LOSSES and float(norms.min()) > rounding.norms(counting(results, "zero1-bf16-device"))
    update = moved(results, "zero1-bf16-device")
    assert float(update.abs().max()) > 1e-3
    wrong = torch.where(torch.arange(len(update)) % 100 == 0, -update, update)
    assert torch.nn.functional.cosine_similarity(update, wrong, dim=0) < rounding.DIRECTION

"""States in host memory change where the optimiser works, not what it does: losses, norms, weights and moments are those without."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.groups import Groups
from tests.numerics.offload_steps import CASES
from tests.numerics.steps import made_model
from tests.numerics.test_zero import SHAPES
from trainer.engine import MOMENTS
from trainer.weights import FragmentWeights

WORLD_SIZE = 2
ANOTHER_CLASS = (1, "bf16")
"""Without offload DeepSpeed takes another class for it (BF16_Optimizer), which sums in another order."""


@pytest.fixture(scope="module")
def results(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return groups.call("tests.numerics.offload_steps", tmp_path_factory.mktemp("offload"), WORLD_SIZE)


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


def test_zero_1_in_bf16_is_the_same_up_to_rounding(results: Path) -> None:
    """Two classes of DeepSpeed's: masters that differ in their last fp32 bit may round to another bf16 weight (2^-8 of it), and Adam makes a step of
    the rate's size of the sign of a gradient near zero. So losses to 1e-5, norms to 1e-4, and the whole update by its direction."""
    ours, theirs = both(results, *ANOTHER_CLASS)
    assert ours["steps"] == theirs["steps"] == 4
    torch.testing.assert_close(torch.tensor(ours["losses"]), torch.tensor(theirs["losses"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(ours["norms"]), torch.tensor(theirs["norms"]), rtol=1e-4, atol=0.0)
    host, device = (moved(results, f"zero1-bf16-{place}") for place in ("host", "device"))
    assert torch.nn.functional.cosine_similarity(host, device, dim=0) > 0.9999


def test_the_comparison_would_see_a_difference(results: Path) -> None:
    """The twins: the steps do move the weights, and other gradients (bf16 and fp32) move them elsewhere than 0.9999 allows."""
    assert float(moved(results, "zero2-fp32-host").abs().max()) > 1e-3
    apart = torch.nn.functional.cosine_similarity(moved(results, "zero1-bf16-host"), moved(results, "zero1-fp32-host"), dim=0)
    assert apart < 0.9999

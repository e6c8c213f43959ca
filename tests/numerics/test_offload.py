"""States in host memory change where the optimiser works, not what it does: losses, norms, weights and moments are those without."""

import json
from pathlib import Path

import pytest
import torch

from tests.numerics.offload_steps import CASES
from tests.numerics.test_zero import SHAPES, launch
from trainer.engine import MOMENTS
from trainer.weights import FragmentWeights

WORLD_SIZE = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("offload"), WORLD_SIZE, "offload_steps")


@pytest.mark.parametrize("zero_stage, precision", CASES)
def test_offload_is_the_same_training(results: Path, zero_stage: int, precision: str) -> None:
    """Uneven accumulation and clipping in every step: DeepSpeed before 0.19 got ZeRO 1 and 2 with offload and accumulation wrong."""
    host, device = (f"zero{zero_stage}-{precision}-{place}" for place in ("host", "device"))
    theirs, ours = (json.loads((results / f"{name}.json").read_text()) for name in (device, host))
    assert ours["steps"] == theirs["steps"] == 4
    # Gradients may be summed in another order on their way to the host; updates are of size 3e-3, so 1e-5 would show one wrong step.
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(ours["losses"]), torch.tensor(theirs["losses"]), **tolerance)
    torch.testing.assert_close(torch.tensor(ours["norms"]), torch.tensor(theirs["norms"]), **tolerance)
    for kind in ("weight", *MOMENTS):
        read = [FragmentWeights(results / name, SHAPES, WORLD_SIZE, kind) for name in (host, device)]
        for name in SHAPES:
            torch.testing.assert_close(read[0].read(name), read[1].read(name), **tolerance)


def test_four_steps_do_move_the_weights(results: Path) -> None:
    """The twin: the comparison would see a step that was not taken."""
    from tests.numerics.steps import made_model

    start = dict(made_model().named_parameters())
    ended = FragmentWeights(results / "zero2-fp32-host", SHAPES, WORLD_SIZE)
    moved = max(float((ended.read(name) - start[name].detach()).abs().max()) for name in SHAPES)
    assert moved > 1e-3

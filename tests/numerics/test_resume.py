"""Saved after two of four steps and resumed: to the bit with the same ranks, to 1e-6 with others or under another ZeRO stage."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.groups import Groups
from tests.numerics.ranks import rounding
from tests.numerics.ranks.resume import CASES, SAVED_AT, SHAPES, SOLO
from trainer.store.weights import FragmentWeights

NAMES = [f"zero{zero_stage}-{precision}" for zero_stage, precision in CASES]


@pytest.fixture(scope="module")
def first(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks: whole runs, their saves, and each resumed as it was."""
    folder = tmp_path_factory.mktemp("resume") / "first"
    folder.mkdir()
    return groups.call("tests.numerics.ranks.resume", folder, 2)


@pytest.fixture(scope="module", params=[(3, "1"), (1, "3")])
def elsewhere(request: pytest.FixtureRequest, groups: Groups, first: Path) -> tuple[Path, int, str]:
    """Every case resumed by 3 ranks from ZeRO 1's save, and by 1 rank from ZeRO 3's."""
    world_size, saved_zero = request.param
    folder = first.parent / f"from-zero-{saved_zero}"
    folder.mkdir()
    return groups.call("tests.numerics.ranks.resume", folder, world_size, "2", saved_zero), world_size, saved_zero


@pytest.mark.parametrize("name", NAMES)
def test_the_same_ranks_go_on_to_the_bit(first: Path, name: str) -> None:
    result = json.loads((first / name / "result.json").read_text())
    assert result["resumed"] == result["whole"][SAVED_AT:]
    assert result["optimizer_steps"] == len(result["whole"])
    for rank in range(2):
        whole, resumed, saved = (
            (first / name / kind / f"rank-{rank:05d}.safetensors").read_bytes() for kind in ("whole", "resumed", "saved")
        )
        assert whole == resumed
        assert whole != saved  # the twin: two steps do move weights and moments


@pytest.mark.parametrize("name", [*NAMES, f"zero{SOLO}-fp32", f"zero{SOLO}-bf16"])
def test_other_ranks_and_another_zero_stage_go_on_alike(first: Path, elsewhere: tuple[Path, int, str], name: str) -> None:
    folder, world_size, _ = elsewhere
    if name.startswith(f"zero{SOLO}") and world_size > 1:
        return
    precision = name.rpartition("-")[2]
    source = first / f"zero2-{precision}"  # losses of one precision agree between ZeRO stages (test_zero.py)
    whole = [float.fromhex(loss) for loss in json.loads((source / "result.json").read_text())["whole"][SAVED_AT:]]
    resumed = [float.fromhex(loss) for loss in json.loads((folder / name / "result.json").read_text())["resumed"]]
    relative, absolute = (1e-6, 1e-6) if precision == "fp32" else (0.0, rounding.LOSSES)  # bf16 sums in another order round differently
    torch.testing.assert_close(torch.tensor(resumed), torch.tensor(whole), rtol=relative, atol=absolute)
    assert abs(whole[0] - whole[1]) > absolute  # the twin: a step too many or too few would be seen
    if precision == "fp32":
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            ours = FragmentWeights(folder / name / "resumed", SHAPES, world_size, kind)
            theirs = FragmentWeights(source / "whole", SHAPES, 2, kind)
            for parameter in SHAPES:
                torch.testing.assert_close(ours.read(parameter), theirs.read(parameter), rtol=1e-5, atol=1e-5)  # as in test_zero.py


def test_moments_matter(first: Path) -> None:
    """The twin of all this: without its moments a resume goes elsewhere, so equality above is not for nothing."""
    saved = FragmentWeights(first / "zero2-fp32" / "saved", SHAPES, 2, "exp_avg")
    assert all(saved.read(name).abs().sum() > 0 for name in SHAPES)

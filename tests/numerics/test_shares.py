"""What ranks read and leave by shares: every byte once, and the numbers to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.groups import Groups
from tests.numerics.ranks import steps
from tests.numerics.ranks.shares_steps import CASES, SHAPES
from trainer.store.fragment_file import sha256_of
from trainer.store.weights import FolderWeights, FragmentWeights

WORLD_SIZE = 3  # divides few parameters: the last shares are padded


@pytest.fixture(scope="module", params=[3, 2])  # as many ranks as now, and another number
def results(request: pytest.FixtureRequest, groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    out = groups.call("tests.numerics.ranks.shares_steps", tmp_path_factory.mktemp(f"by{request.param}"), WORLD_SIZE, str(request.param))
    return request.param, out


@pytest.fixture(scope="module")
def facts(results: tuple[int, Path]) -> dict[str, Any]:
    return dict(json.loads((results[1] / "facts.json").read_text()))


def names(*starts: str) -> list[str]:
    return [f"zero{stage}-{precision}-{start}" for stage, precision in CASES for start in starts]


def test_masters_are_exact_and_parameters_their_rounding(results: tuple[int, Path], facts: dict[str, Any]) -> None:
    weights = {name: p.detach() for name, p in steps.made_model().named_parameters()}
    for case in names("stage", "folder"):
        stored = FragmentWeights(results[1] / case, SHAPES, WORLD_SIZE)
        assert all(torch.equal(stored.read(name), weight) for name, weight in weights.items()), case
        assert facts[case].get("rounded", True), case
        assert not torch.equal(stored.read("lm_head.weight"), weights["lm_head.weight"].bfloat16().float())  # the twin


def test_every_byte_is_read_once(results: tuple[int, Path], facts: dict[str, Any]) -> None:
    """By as many ranks as have written: the files and nothing else. By others: what is hashed, and each value once more."""
    written_by, out = results
    sizes = [path.stat().st_size for path in sorted((out / "stages/first/weights").iterdir())]
    values = 4 * sum(p.numel() for p in steps.made_model().parameters())
    for case in names("stage"):
        read = facts[case]["read"]
        zero_3 = case.startswith("zero3")
        if written_by == WORLD_SIZE:
            assert read == sizes, case
        else:
            assert sum(read) <= sum(sizes) + values + 3 * max(sizes), case
            assert max(read) <= max(sizes) * 2 + 2 * values / WORLD_SIZE, (case, zero_3)
    folder = (out / "model/model.safetensors").stat().st_size
    for case in names("folder"):
        header = folder - values
        assert sum(facts[case]["read"]) == values + WORLD_SIZE * header, case  # every rank reads what lies where


def test_hf_is_the_rounding_and_nobody_reads_for_it(results: tuple[int, Path], facts: dict[str, Any]) -> None:
    weights = {name: p.detach() for name, p in steps.made_model().named_parameters()}
    for case in names("stage"):
        hf = results[1] / case / "hf"
        dtype = torch.bfloat16 if "bf16" in case else torch.float32
        files = FolderWeights(hf)
        assert all(torch.equal(files.read(name), weight.to(dtype)) for name, weight in weights.items()), case
        _, listed = facts[case]["hf"]
        assert {name: facts["sha256"] for name, facts in listed.items()} == {path.name: sha256_of(path) for path in hf.iterdir()}
        assert facts[case]["read_again"] == 0


def test_every_group_waits_as_long_as_storage_may_take(facts: dict[str, Any]) -> None:
    before, _, after = facts["timeouts"]
    assert len(after) > 1, "DeepSpeed has groups of its own"
    assert set(after) == {4321.0} and 4321.0 not in before

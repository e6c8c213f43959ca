"""bf16 on CPUs: gradients that are sums over a row's tokens are right, whatever module, ZeRO stage or checkpointing asks for them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.groups import Groups
from tests.numerics.ranks.wide_steps import CASES

ROUNDED = 2.0**-8
"""A sum in fp32 of 2,048 numbers is off by 2,048 · 2⁻²⁴ of what it adds at most; then it is rounded to bf16 once, to 2⁻⁸ of itself at most."""


@pytest.fixture(scope="module")
def found(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out: Path = groups.call("tests.numerics.ranks.wide_steps", tmp_path_factory.mktemp("wide"), 1)
    return json.loads((out / "found.json").read_text())


def bound(case: str, parameter: str) -> float:
    """A table that is the head too is rounded for each use and once as their sum; a norm's weight is multiplied by what bf16 kept of mean and deviation."""
    return ROUNDED * (3 if case.startswith(("tied", "gpt2")) or (parameter.endswith("weight") and "embed" not in parameter) else 1)


def test_sums_over_tokens_are_rounded_once(found: dict[str, Any]) -> None:
    for case in (f"{kind}-{zero_stage}" for kind, zero_stage in CASES):
        wrong = {name: error for name, error in found[case].items() if name != "loss" and error > bound(case, name)}
        assert not wrong and len(found[case]) > 1, (case, wrong)
    assert max(found["operators"].values()) <= 2 * ROUNDED  # take and vectors: the row is summed before, in bf16's rounding


def test_the_forward_pass_keeps_its_bits(found: dict[str, Any]) -> None:
    for kind, zero_stage in (("llama", 1), ("neox", 1), ("gpt2", 2)):
        assert found[f"{kind}-{zero_stage}"]["loss"] == found[f"{kind}-torch"]["loss"]


def test_torchs_own_kernels_fail(found: dict[str, Any]) -> None:
    """The twin: a bf16 sum of 1,900 equal numbers stops at 256 of them. Tables and norms lose most of their gradients."""
    for case, parameters in (("llama", ["embed"]), ("neox", ["embed", "norm.weight", "norm.bias"]), ("gpt2", ["wte", "ln_f.bias"])):
        for part in parameters:
            assert max(error for name, error in found[f"{case}-torch"].items() if part in name) > 0.3, (case, part)
    assert min(found["operators-torch"].values()) > 0.2

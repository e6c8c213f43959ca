"""ZeRO-3 by whole layers gives plain torch's gradients to the last bit, and none is lost."""

import json

import pytest

from tests.helpers.groups import Groups


@pytest.fixture(scope="module")
def told(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    out = groups.call("tests.numerics.ranks.leaf_steps", tmp_path_factory.mktemp("leaves"), 1)
    return json.loads((out / "told.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", ["whole", "frozen", "checkpointing"])
def test_gradients_are_plain_torchs(told: dict[str, list[str]], case: str) -> None:
    assert told[case] == []


def test_a_gradient_that_comes_too_late_is_noticed(told: dict[str, list[str]]) -> None:
    """The twin: where the first layer's input needs no gradient, DeepSpeed takes the layer's gradients before they are there, and goes on without them."""
    [reason] = told["planted"]
    assert "LlamaDecoderLayer" in reason and "its gradient comes after its layer's were taken" in reason

"""What is known of a model without its weights."""

from pathlib import Path

import pytest

from cluster.cost.model_shape import read_shape, shape_of
from console import UserError
from experiment import load_experiment
from tests.conftest import ROOT


def test_shapes_by_heart_are_those_of_transformers() -> None:
    """Against the number of parameters that the models' cards give."""
    known = {"meta-llama/Llama-3.1-8B": 8_030_261_248, "Qwen/Qwen2.5-0.5B": 494_032_768, "meta-llama/Llama-3.2-1B": 1_235_814_400}
    for name, parameters in known.items():
        shape = shape_of(load_experiment(ROOT / "experiments/wiki2023_qwen_7b.yaml", [f"model.name={name}"]).model)
        assert shape.parameters == pytest.approx(parameters, rel=1e-3), name  # Qwen's biases are not counted


@pytest.mark.parametrize("content, reason", [("{}", "no model_type"), ("nonsense", "not JSON"), (None, "cannot be read")])
def test_models_of_other_kinds(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        read_shape(tmp_path / "config.json")

"""Mixtures of experts, state spaces and hybrids in the planner: counted on their own networks; what is not known is refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from cluster.cost.chips import CHIPS, make_hardware
from cluster.cost.memory import SetUp, expert_copies, gpu_memory, trained_share
from cluster.cost.model_shape import ModelShape, read_shape, shape_of, shape_of_config
from console import UserError
from tests.helpers.refusals import refusal
from trainer.config import ModelConfig
from trainer.network.flops import row_flops
from trainer.network.network_size import network_size

QWEN_30B = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, config, total, active",
    [
        ("mistralai/Mixtral-8x7B-v0.1", transformers.MixtralConfig(**MIXTRAL), 46.70, 12.88),
        ("Qwen/Qwen3-30B-A3B", transformers.Qwen3MoeConfig(**QWEN_30B), 30.53, 3.35),
    ],
)
def test_true_sizes(name: str, config: Any, total: float, active: float) -> None:
    """As the models' cards have them, by heart and counted on the network; one expert would be 7.2 and 3.3 billion."""
    known, counted = shape_of(ModelConfig(name=name)), shape_of_config(config)
    for shape in (known, counted):
        assert shape.parameters / 1e9 == pytest.approx(total, abs=0.01) and shape.active_parameters / 1e9 == pytest.approx(active, abs=0.01)
    assert (
        known.product_parameters == pytest.approx(counted.product_parameters, rel=1e-4) and known.attention_width == counted.attention_width
    )
    assert known.expert_parameters == counted.expert_parameters and known.largest_parameter == counted.largest_parameter
    assert known.flops_per_token(500) == pytest.approx(counted.flops_per_token(500), rel=1e-4)
    assert row_flops(config, [0, 500]) == pytest.approx(500 * counted.flops_per_token(500))


def test_attention_is_heads_by_head_size() -> None:
    """Qwen3-4B: 32 heads of 128 on a width of 2,560."""
    config = transformers.Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    size = network_size(config)
    assert size.attention_width == 36 * 32 * 128 and size.parameters == 4_022_468_096


SMALL = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 4}
JAMBA = {
    **SMALL, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8,
    "mamba_dt_rank": 4, "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 4, "attn_layer_offset": 1, "use_mamba_kernels": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "kind, settings, attention, states",
    [
        ("Qwen2Config", {**SMALL, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}, 4, 0),
        ("MambaConfig", SMALL, 0, 128),
        ("JambaConfig", JAMBA, 1, 128),
    ],
)
def test_families_are_counted(kind: str, settings: dict[str, Any], attention: int, states: int, tmp_path: Path) -> None:
    """Biases, shared weights, state spaces: all that the network has; and a plan comes out."""
    config = getattr(transformers, kind)(**settings)
    config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path / "config.json")
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.attention_layers == attention and shape.inner_size == states
    assert 0 < shape.product_parameters < shape.parameters
    for recompute in (False, True):
        memory = gpu_memory(shape, SetUp(3, 4096, recompute), 8)
        assert memory.activations > 0
    adapter = SetUp(2, 4096, adapter=16)
    assert 0 < trained_share(shape, adapter) < 1 and gpu_memory(shape, adapter, 1).total > 0


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    for content, reason in (
        ({"model_type": "t5"}, r"config.json: .*model_type t5 is no causal language model"),
        ({"model_type": "resnet"}, r"model_type resnet: no hidden_size|model_type resnet"),
        ({"model_type": "nobody-knows"}, r"config.json: cannot be used"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert re.search(reason, refusal(lambda: read_shape(tmp_path / "config.json")))


def test_experts_without_a_number_are_refused() -> None:
    from trainer.network.network_size import _chosen_share

    class Weight:
        shape, ndim = (4, 2, 2), 3

    with pytest.raises(UserError, match="model_type new: how many of its experts a token is given is not known"):
        _chosen_share("new", {}, {"layers.0.experts.up": Weight()}, {"layers.0.experts.up"})
    assert _chosen_share("new", {"top_k": 1}, {"layers.0.experts.up": Weight()}, {"layers.0.experts.up"}) == 0.25


@pytest.mark.parametrize("kind", ["MixtralConfig", "Qwen3MoeConfig"])
def test_an_adapter_on_experts_trains_what_peft_trains(kind: str) -> None:
    import torch

    from data.ground.adapters import Adapter
    from trainer.adapter.adapter import inject, trained_parameters

    settings = {
        **SMALL,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts_per_tok": 2,
    }
    own = {"num_local_experts": 4} if kind == "MixtralConfig" else {"num_experts": 4, "moe_intermediate_size": 32}
    config = getattr(transformers, kind)(**settings, **own)
    shape = shape_of_config(config)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    inject(model, Adapter(r=4, target_modules="all-linear"), 0, 0)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    assert round(trained_share(shape, SetUp(3, 4096, adapter=4)) * shape.parameters) == trained
    without = SetUp(3, 4096, adapter=4, on_experts=False)
    assert trained_share(shape, without) < 0.5 * trained / shape.parameters, "the twin"


def test_an_adapter_on_experts_keeps_them_all() -> None:
    """30B-A3B: 57 GB of sums for the backward pass without recomputation, of one layer with it; so the plan turns recomputation on."""
    shape = shape_of(ModelConfig(name="Qwen/Qwen3-30B-A3B"))
    assert round(trained_share(shape, SetUp(3, 4096, adapter=16)) * shape.parameters) == pytest.approx(997e6, rel=0.001)
    plain, again = SetUp(3, 4096, adapter=16), SetUp(3, 4096, recompute=True, adapter=16)
    assert expert_copies(shape, plain) == pytest.approx(2 * shape.expert_parameters * 49 / 48)
    assert expert_copies(shape, again) == pytest.approx(2 * shape.expert_parameters * 2 / 48)
    assert expert_copies(shape, SetUp(3, 4096)) == expert_copies(ModelShape(64, 2, 64, 2, 2, 32, 64), plain) == 0


def test_recomputation_is_turned_on_for_them() -> None:
    from cluster.fallback import fitting
    from cluster.plan import question_of
    from experiment import load_experiment
    from tests.conftest import ROOT

    given = ["model.name=Qwen/Qwen3-30B-A3B", "trainer.adapter.r=16", "trainer.zero_stage=3"]
    experiment = load_experiment(ROOT / "experiments" / "wiki2023_llama2_7b.yaml", [*given, "trainer.gradient_checkpointing=false"])
    hardware = make_hardware(8, CHIPS["H100"])
    trainer, line = fitting(experiment.trainer, question_of(experiment, hardware), hardware)
    assert trainer.gradient_checkpointing and "does not fit (GPU memory" in line

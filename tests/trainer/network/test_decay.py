"""Weight decay acts on matrices and embeddings alone, however a family lays its norms, biases and scales out."""

from typing import Any

import pytest
import torch
from peft import IA3Config, inject_adapter_in_model
from transformers import AutoModelForCausalLM, CohereConfig, GptOssConfig, LlamaConfig, MambaConfig

from trainer.network.model import matrices_and_rest

_SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
_MODELS: dict[str, tuple[Any, set[str]]] = {
    "llama": (LlamaConfig(**_SMALL, attention_bias=True), set()),
    "gpt_oss": (GptOssConfig(**_SMALL, num_local_experts=2, num_experts_per_tok=1), {"gate_up_proj_bias", "down_proj_bias"}),
    "cohere": (CohereConfig(**_SMALL, use_qk_norm=True), {"q_norm.weight", "k_norm.weight"}),
    "mamba": (MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4), {"A_log"}),
}
"""And the ends of the names of what has two dimensions and is no matrix."""


def names(model: torch.nn.Module) -> tuple[set[str], set[str]]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, rest = matrices_and_rest(model)
    return {by_id[id(p)] for p in decayed}, {by_id[id(p)] for p in rest}


@pytest.mark.parametrize("family", _MODELS)
def test_stacked_norms_and_biases_do_not_decay(family: str) -> None:
    config, stacked = _MODELS[family]
    model = AutoModelForCausalLM.from_config(config)
    decayed, rest = names(model)
    assert decayed | rest == {name for name, _ in model.named_parameters()} and not decayed & rest
    found = {name for name, p in model.named_parameters() if p.dim() > 1 and name in rest}
    assert {end for end in stacked if any(name.endswith(end) for name in found)} == stacked and len(found) == len(stacked)
    assert all(p.dim() == 1 or name in found for name, p in model.named_parameters() if name in rest)
    assert {"embed_tokens", "embeddings"} & {part for name in decayed for part in name.split(".")}


def test_scales_of_ia3_do_not_decay() -> None:
    """They multiply activations and start at 1: decayed, they would shrink the frozen network."""
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**_SMALL))
    inject_adapter_in_model(IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("ia3" in name)
    decayed, rest = names(model)
    assert not decayed and len(rest) == 2 and all("ia3_l" in name for name in rest)

"""Tiny models that have what the real ones of their family have: heads of 128, the family's own theta, windows and chunks that rows of 2,048 cross.

Weights are spread so widely that attention looks back, and no norm is left at ones: what is read wrongly shows.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.models.families import model_of

VOCAB = 256
_HIDDEN = 64
_SIZES = {
    "hidden_size": _HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 128, "max_position_embeddings": 4096, "initializer_range": 0.15,
}  # fmt: skip
_ONE_HEAD = {**_SIZES, "num_attention_heads": 1}  # attention is most of what a row of 2,048 costs here
_ORIGINAL = 512
"""Positions before a rope was stretched: rows of 2,048 go beyond them."""


def _rope(theta: float, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


_LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": _ORIGINAL}
_LONG = {
    "factor": 8.0, "original_max_position_embeddings": _ORIGINAL,
    "short_factor": [1 + 0.01 * n for n in range(64)], "long_factor": [1.5 + 0.5 * n for n in range(64)],
}  # fmt: skip
_PHI3 = {  # its heads share the hidden size
    **{key: value for key, value in _SIZES.items() if key != "head_dim"}, "hidden_size": 128, "num_attention_heads": 1, "initializer_range": 0.1,
    "original_max_position_embeddings": _ORIGINAL,
}  # fmt: skip
_GEMMA = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "query_pre_attn_scalar": 128, "sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
_LLAMA4 = {
    "intermediate_size_mlp": 128, "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
    "no_rope_layers": [1, 0], "attention_chunk_size": 256, "attn_temperature_tuning": True, "floor_scale": 128, "attn_scale": 0.1,
}  # fmt: skip
_DEEPSEEK = {
    **_SIZES, "head_dim": 64, "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "moe_intermediate_size": 96, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_YARN = {
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": _ORIGINAL,
}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_d_ssm": 128}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SIZES, **_rope(10000.0)}),
    "llama3.1": ("LlamaConfig", {**_SIZES, **_rope(500000.0, "llama3", **_LLAMA31)}),
    "qwen3": ("Qwen3Config", {**_SIZES, **_rope(1000000.0)}),
    "gemma3": ("Gemma3TextConfig", {**_ONE_HEAD, **_GEMMA}),
    "phi3-long": ("Phi3Config", {**_PHI3, **_rope(10000.0, "longrope", **_LONG)}),
    "mistral": ("MistralConfig", {**_SIZES, **_rope(10000.0), "sliding_window": 256}),
    "llama4": ("Llama4TextConfig", {**_ONE_HEAD, **_rope(500000.0), **_LLAMA4}),
    "deepseek-v3": ("DeepseekV3Config", {**_DEEPSEEK, **_rope(10000.0, "yarn", **_YARN)}),
    "mixtral": ("MixtralConfig", {**_ONE_HEAD, **_rope(1000000.0), "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {**_ONE_HEAD, **_rope(1000000.0), "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    ),
    "mamba": (
        "MambaConfig",
        {"hidden_size": _HIDDEN, "num_hidden_layers": 2, "state_size": 2, "expand": 1},
    ),  # its scan in torch costs T² × both
    "falcon-h1": ("FalconH1Config", {**_SIZES, **_rope(100000000000.0), **_MAMBA2, "mamba_chunk_size": 64}),
}


def save(family: str, folder: Path, **changes: Any) -> Path:
    """A model folder; `changes`: settings that make it another network with the same weights."""
    name, settings = FAMILIES[family]
    model: Any = model_of(name, settings, VOCAB)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter += 0.1 * torch.randn_like(parameter)
        _decide_routing(model)
    for key, value in changes.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    return folder


def _decide_routing(model: torch.nn.Module) -> None:
    """Makes each token's experts a matter of its embedding, far apart: rounding to bf16 never chooses others, which no bound could cover.

    The embedding's first dimensions vote for the experts, the router reads those, and nothing else writes to them.
    """
    parameters = dict(model.named_parameters())
    routers = [p for name, p in parameters.items() if name.endswith((".gate.weight", ".router.weight"))]
    if not routers:
        return
    experts = len(routers[0])
    for name, parameter in parameters.items():
        if "o_proj" in name or "down_proj" in name:
            writes = parameter if parameter.shape[-2] == _HIDDEN else parameter.transpose(-1, -2)  # experts of Llama 4 lie the other way
            writes[..., :experts, :] = 0
    for router in routers:
        router *= 0.1
        router[:, :experts] = torch.eye(experts)
    embedding = parameters["model.embed_tokens.weight"]
    config: Any = model.config
    votes = torch.tensor([3.0, 2.0, -2.0, -3.0] if config.num_experts_per_tok == 2 else [3.0, -1.0, -2.0, -3.0])
    groups = getattr(config, "n_group", None)  # of DeepSeek the experts of one group are chosen together
    orders = [
        torch.arange(experts).roll(2) if groups and n % 2 else torch.arange(experts) if groups else torch.randperm(experts)
        for n in range(VOCAB)
    ]
    embedding[:, :experts] = 2 * torch.stack([votes[order] for order in orders])
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.02, 0.02, len(buffer)))


def plain(folder: Path) -> Any:
    """The oracle's network: plain transformers in fp32, attention and experts in the open."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32)

"""Tiny random models of every family that docs/models.md lists, and a tokenizer they share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from data.wording.tiny_tokenizer import make_tokenizer
from trainer.network.buffers import buffers

_DENSE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {
    **{k: v for k, v in _DENSE.items() if k != "head_dim"},
    "q_lora_rank": 16,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
}
"""Of the latent attention's cache vLLM's CPU kernel knows one size: 512 + 64."""
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}

# name → (config class of transformers, what differs from its defaults). The names are those of the paper's families.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaConfig", {**_DENSE, "num_key_value_heads": 2}),
    "llama3": ("LlamaConfig", {**_DENSE, "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    "qwen2": ("Qwen2Config", {k: v for k, v in _DENSE.items() if k != "head_dim"}),
    "qwen2.5-tied": ("Qwen2Config", {**{k: v for k, v in _DENSE.items() if k != "head_dim"}, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _DENSE),
    "gemma2": ("Gemma2Config", {**_DENSE, "query_pre_attn_scalar": 32, "sliding_window": 32, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", {**_DENSE, "query_pre_attn_scalar": 32, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("MistralConfig", {**_DENSE, "sliding_window": 32}),
    "mamba": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": ("Mamba2Config", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 32}),
    "bamba": ("BambaConfig", {**{k: v for k, v in _DENSE.items() if k != "head_dim"}, **_MAMBA2, "mamba_chunk_size": 32, "attn_layer_indices": [1]}),
    "falcon-h1": ("FalconH1Config", {**_DENSE, **_MAMBA2, "mamba_d_ssm": 128, "mamba_chunk_size": 32}),
    "mixtral": ("MixtralConfig", {**_DENSE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v3": ("DeepseekV3Config", {**_LATENT, **_ROUTED, "n_group": 2, "topk_group": 1, "num_key_value_heads": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}),
    "glm4-moe": ("Glm4MoeConfig", {**_DENSE, **_ROUTED}),
    "minimax-m2": ("MiniMaxM2Config", {**_DENSE, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 16, "scoring_func": "sigmoid", "use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True}),
    "gemma4": ("Gemma4TextConfig", {**_DENSE, "global_head_dim": 32, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0}),
    "qwen3-moe": ("Qwen3MoeConfig", {**_DENSE, **_EXPERTS, "num_experts": 4}),
}  # fmt: skip


# With constants of the library among their buffers (test_buffers.py alone).
WITH_CONSTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("ApertusConfig", {k: v for k, v in _DENSE.items() if k != "head_dim"}),
    "minimax": ("MiniMaxConfig", {**_DENSE, "num_local_experts": 4, "block_size": 32, "layer_types": ["linear_attention", "full_attention"]}),
}  # fmt: skip


def make_model(family: str, vocab_size: int) -> torch.nn.Module:
    return model_of(*(FAMILIES | WITH_CONSTANTS)[family], vocab_size)


def model_of(name: str, settings: dict[str, Any], vocab_size: int) -> torch.nn.Module:
    """Of this config class of transformers, with these settings."""
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    positions = {"max_position_embeddings": 512} if "num_attention_heads" in settings else {}
    config = getattr(transformers, name)(vocab_size=vocab_size, **{**positions, **special, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for buffer in buffers(model).values():  # what training would have left there: no number that bf16 can hold
        buffer.copy_(1 + 0.3 * torch.rand(buffer.shape))
    return model


def save_model(family: str, folder: Path, texts: list[str], change: Callable[[Any], None] = lambda model: None) -> Path:
    """A model folder as a user brings it: config, tokenizer, safetensors in the family's own layout."""
    tokenizer = make_tokenizer(texts, 400)
    model: Any = make_model(family, len(tokenizer))
    change(model)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

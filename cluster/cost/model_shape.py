"""A language model as the cost model sees it: its dimensions, from config.json or from what is known by heart."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console import UserError
from data.ground.model_config import check_name
from trainer.config import ModelConfig, TinyModel
from trainer.network.network_size import CHOSEN, NetworkSize


@dataclass(frozen=True)
class ModelShape:
    """Dimensions by transformers' own names."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    """0: no attention."""
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    num_experts: int = 0
    """Of a layer; 0: one MLP for all tokens."""
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    """Of one expert."""
    shared_intermediate_size: int = 0
    """Of what every token meets beside its experts."""
    inner_size: int = 0
    """Of state-space layers; 0: there are none."""
    attention_layers: int | None = None
    """None: all."""
    counted: NetworkSize | None = None
    """Of the network itself, where transformers has built it; None: by the formulae below, which know decoders of Llama's kind and mixtures of them."""
    whole_logits: bool = False
    """What comes after the output head (a cap, a scale) needs the logits of a row at once."""
    scans: bool = False
    """State-space layers are Mamba-1's, whose kernels carry a state over the items of a row."""

    @property
    def parameters(self) -> int:
        """All weights: embedding, blocks with all experts, norms, output head where it is not tied."""
        if self.counted:
            return self.counted.parameters
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        embedding = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return self._dense + self.expert_parameters + embedding + norms

    @property
    def active_parameters(self) -> int:
        """What of `parameters` one token meets: all but the experts that are not chosen for it."""
        if self.counted:
            return self.counted.active
        return self.parameters - round(self.expert_parameters * (1 - self._chosen_share))

    @property
    def product_parameters(self) -> int:
        """Weights that one token is multiplied with: the output head counts, tied or not, the embedding does not, nor do experts that are not chosen."""
        return self.counted.products if self.counted else self._dense + round(self.expert_parameters * self._chosen_share)

    @property
    def expert_parameters(self) -> int:
        """Of all experts of all layers."""
        if self.counted:
            return self.counted.experts
        return self.num_hidden_layers * self.num_experts * 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def largest_parameter(self) -> int:
        """Values of the largest weight: an embedding, a matrix, or the experts of a layer, which are one."""
        if self.counted:
            return self.counted.largest
        experts = 2 * self.num_experts * self.moe_intermediate_size
        return max(self.vocab_size, self.intermediate_size, experts) * self.hidden_size

    @property
    def attention_width(self) -> int:
        """Heads × head size, summed over the layers with attention."""
        if self.counted:
            return self.counted.attention_width
        return self.num_hidden_layers * self.num_attention_heads * self.head_dim

    @property
    def mlp_width(self) -> int:
        """Of what one token meets in one block."""
        if not self.num_experts:
            return self.intermediate_size
        return self.num_experts_per_tok * self.moe_intermediate_size + self.shared_intermediate_size

    @property
    def _chosen_share(self) -> float:
        return self.num_experts_per_tok / self.num_experts if self.num_experts else 1.0

    @property
    def _dense(self) -> int:
        """Products that no expert does: attention, routers or MLPs, the head."""
        d = self.hidden_size
        attention = d * self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        mlp = d * self.num_experts if self.num_experts else 3 * d * self.intermediate_size
        return self.num_hidden_layers * (attention + mlp) + d * self.vocab_size

    def flops_per_token(self, attended: float) -> float:
        """Forward and backward: 6 N + 12 × attention_width × s̄, attention not halved for causality, as published figures count.

        `attended`: s̄ = Σl² / Σl over the packed items of l tokens.
        """
        return 6.0 * self.product_parameters + 12.0 * self.attention_width * attended


# From the models' own config.json; so that a laptop without hub can plan.
_KNOWN = {
    "meta-llama/Llama-2-7b-hf": ModelShape(4096, 32, 11008, 32, 32, 128, 32000),
    "meta-llama/Llama-2-13b-hf": ModelShape(5120, 40, 13824, 40, 40, 128, 32000),
    "meta-llama/Llama-2-70b-hf": ModelShape(8192, 80, 28672, 64, 8, 128, 32000),
    "meta-llama/Llama-3.1-8B": ModelShape(4096, 32, 14336, 32, 8, 128, 128256),
    "meta-llama/Llama-3.1-70B": ModelShape(8192, 80, 28672, 64, 8, 128, 128256),
    "meta-llama/Llama-3.2-1B": ModelShape(2048, 16, 8192, 32, 8, 64, 128256, True),
    "meta-llama/Llama-3.2-3B": ModelShape(3072, 28, 8192, 24, 8, 128, 128256, True),
    "mistralai/Mistral-7B-v0.1": ModelShape(4096, 32, 14336, 32, 8, 128, 32000),
    "Qwen/Qwen2.5-0.5B": ModelShape(896, 24, 4864, 14, 2, 64, 151936, True),
    "Qwen/Qwen2.5-1.5B": ModelShape(1536, 28, 8960, 12, 2, 128, 151936, True),
    "Qwen/Qwen2.5-7B": ModelShape(3584, 28, 18944, 28, 4, 128, 152064),
    "Qwen/Qwen2.5-72B": ModelShape(8192, 80, 29568, 64, 8, 128, 152064),
    "google/gemma-2b-it": ModelShape(2048, 18, 16384, 8, 1, 256, 256000, True),
    "mistralai/Mixtral-8x7B-v0.1": ModelShape(4096, 32, 14336, 32, 8, 128, 32000, False, 8, 2, 14336),
    "Qwen/Qwen3-30B-A3B": ModelShape(2048, 48, 6144, 32, 4, 128, 151936, False, 128, 8, 768),
}
_KNOWN |= {
    alias: _KNOWN[name]
    for alias, name in {
        "meta-llama/Meta-Llama-3-8B": "meta-llama/Llama-3.1-8B",
        "mistralai/Mixtral-8x7B-Instruct-v0.1": "mistralai/Mixtral-8x7B-v0.1",
        "Qwen/Qwen3-30B-A3B-Base": "Qwen/Qwen3-30B-A3B",
    }.items()
}


def shape_of(model: ModelConfig) -> ModelShape:
    """The experiment's model: a folder's config.json, one by heart, a tiny one, or a config.json that the hub's cache holds.

    UserError where nobody on this machine knows it, or where it is no transformer of Llama's kind.
    """
    if model.tiny:
        return tiny_shape(model.tiny)
    assert model.name is not None
    check_name("model.name", model.name)
    if Path(model.name).is_dir():
        return read_shape(Path(model.name) / "config.json")
    if model.name in _KNOWN:
        return _KNOWN[model.name]
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
    if not isinstance(cached, str):
        raise UserError(
            f"model.name: the dimensions of {model.name} are not known here; download its config.json, or give a folder with one"
        )
    return read_shape(Path(cached))


def read_shape(path: Path) -> ModelShape:
    """From a config.json: sizes are those of the network that transformers makes of it. UserError where the file is missing or broken, or its kind not known."""
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: not JSON") from None
    if "model_type" not in config:
        raise UserError(f"{path}: no model_type: it cannot be told which network this is")
    from trainer.network.text_config import read_config

    whole = read_config(path.parent)
    try:
        return shape_of_config(whole)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def shape_of_config(whole: Any) -> ModelShape:
    """Of a transformers config. UserError, with the model's type, for a kind that the planner does not know."""
    from trainer.network.network_size import network_size

    config = whole.get_text_config()
    kind = whole.model_type

    def size(*names: str) -> int:
        found = next((value for name in names if (value := getattr(config, name, None)) is not None), 0)
        return max(found) if isinstance(found, list | tuple) else int(found)  # Gemma 3n has a width for each layer

    hidden, layers, vocab = size("hidden_size"), size("num_hidden_layers"), size("vocab_size")
    for name, value in (("hidden_size", hidden), ("num_hidden_layers", layers), ("vocab_size", vocab)):
        if not value:
            raise UserError(f"model_type {kind}: no {name}: this kind of model is not planned")
    counted = network_size(whole)
    heads = size("num_attention_heads") if counted.attention_width else 0
    head_dim = size("head_dim") or (hidden // heads if heads else 0)
    experts = size("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts") if counted.experts else 0
    return ModelShape(
        hidden,
        layers,
        size("intermediate_size", "n_inner") or 4 * hidden,
        heads,
        size("num_key_value_heads") or heads,
        head_dim,
        vocab,
        bool(getattr(whole, "tie_word_embeddings", False)),  # transformers ties by the outer one
        experts,
        size(*CHOSEN) if experts else 0,
        size("moe_intermediate_size", "intermediate_size") if experts else 0,
        size("shared_expert_intermediate_size", "shared_intermediate_size") if experts else 0,
        _inner_size(config, hidden),
        round(counted.attention_width / (heads * head_dim)) if heads else 0,
        counted,
        any(getattr(config, name, None) not in (None, 0, 1) for name in _AFTER_THE_HEAD),
        kind in _SCANS,
    )


_AFTER_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")
_SCANS = {"mamba", "falcon_mamba", "jamba"}


def _inner_size(config: Any, hidden: int) -> int:
    """Width of a state-space mixer, whatever its family calls it; 0: the model has none."""
    for name in ("mamba_d_ssm", "d_inner"):
        if value := getattr(config, name, None):
            return int(value)
    expand = next((value for name in ("mamba_expand", "expand") if (value := getattr(config, name, None))), 0)
    return int(expand * hidden)


def tiny_shape(tiny: TinyModel) -> ModelShape:
    """What trainer/network/model.py makes of these settings; the vocabulary may come out smaller."""
    heads = tiny.hidden_size // tiny.head_size
    mlp = tiny.hidden_size * 8 // 3 // 32 * 32
    return ModelShape(tiny.hidden_size, tiny.layers, mlp, heads, heads, tiny.head_size, tiny.vocab_size)

"""A language model as the cost model sees it: its dimensions, from config.json or from what is known by heart."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from console import UserError
from data.model_config import check_name
from trainer.config import ModelConfig, TinyModel
from trainer.flops import matmul_parameters


@dataclass(frozen=True)
class ModelShape:
    """Dimensions by transformers' own names, so that trainer/flops.py reads them too."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False

    @property
    def parameters(self) -> int:
        """All weights: embedding, blocks, norms, output head where it is not tied."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        embedding = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return matmul_parameters(self) + embedding + norms

    def flops_per_token(self, attended: float) -> float:
        """Forward and backward: 6·(N − N_embedding + d·V) + 12·L·d·s̄, attention not halved for causality, as published figures count.

        `attended`: s̄ = Σl² / Σl over the packed items of l tokens.
        """
        return 6.0 * matmul_parameters(self) + 12.0 * self.num_hidden_layers * self.hidden_size * attended

    def causal_flops_per_token(self, attended: float) -> float:
        """The same with the half of attention that a causal mask leaves."""
        return 6.0 * matmul_parameters(self) + 6.0 * self.num_hidden_layers * self.hidden_size * attended


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
}
_KNOWN |= {alias: _KNOWN[name] for alias, name in {"meta-llama/Meta-Llama-3-8B": "meta-llama/Llama-3.1-8B"}.items()}


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
    """From a config.json. UserError where it is missing, broken, or of another kind of model."""
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: not JSON") from None
    needed = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
    if "model_type" in config:  # files leave out what is a default, and those of multimodal models keep sizes in an inner config
        from trainer.text_config import read_config

        whole = read_config(path.parent)
        tied = getattr(whole, "tie_word_embeddings", False)  # transformers ties by the outer one
        config = {**_sizes(whole.get_text_config()), "model_type": config["model_type"], "tie_word_embeddings": tied}
    if missing := [key for key in needed if not isinstance(config.get(key), int)]:
        raise UserError(f"{path}: no {missing[0]}: the planner knows decoders of Llama's kind only (model_type {config.get('model_type')})")
    heads = config["num_attention_heads"]
    return ModelShape(
        hidden_size=config["hidden_size"],
        num_hidden_layers=config["num_hidden_layers"],
        intermediate_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _sizes(config: Any) -> dict[str, Any]:
    """By the names of ModelShape, whatever the family calls them."""
    return {field.name: getattr(config, field.name, None) for field in fields(ModelShape)}


def tiny_shape(tiny: TinyModel) -> ModelShape:
    """What trainer/model.py makes of these settings; the vocabulary may come out smaller."""
    heads = tiny.hidden_size // tiny.head_size
    mlp = tiny.hidden_size * 8 // 3 // 32 * 32
    return ModelShape(tiny.hidden_size, tiny.layers, mlp, heads, heads, tiny.head_size, tiny.vocab_size)

"""What a model's network is made of, counted on its own architecture (transformers', on the meta device): weights, what of them a token meets, attention.

Nothing is reckoned from a config's names: experts, biases, shared layers, heads of another width and state-space layers are what the network has.
"""

import json
from copy import copy
from dataclasses import dataclass
from typing import Any

from console import UserError

CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "expert_top_k",
    "top_k",
)
"""What families call the number of experts that a token is given."""


@dataclass(frozen=True)
class NetworkSize:
    """Counts of one network."""

    parameters: int
    """All weights, each once."""
    products: int
    """Weights that one token is multiplied with: no embedding, norm or bias; of experts the chosen ones; the output head, tied or not."""
    active: int
    """Of `parameters` what one token meets: all but the experts that are not chosen for it."""
    experts: int
    """Weights of all experts of all layers."""
    attention_width: int
    """Heads × head size, summed over the attention layers; 0: there is none."""
    largest: int
    """Values of the largest weight."""


_COUNTED: dict[str, NetworkSize] = {}
_ASKED: list[tuple[Any, NetworkSize]] = []
"""The last config and its answer: asked for at every row, and a millisecond's work to write down."""


def network_size(config: Any) -> NetworkSize:
    """Of a transformers config (a text model's, or that of a whole whose text model it names). UserError where its kind is not known."""
    if _ASKED and _ASKED[0][0] is config:
        return _ASKED[0][1]
    text = config.get_text_config()
    if text is not config:  # transformers ties by the outer one
        text = copy(text)
        text.tie_word_embeddings = bool(getattr(config, "tie_word_embeddings", False))
    told = json.dumps(text.to_dict(), sort_keys=True, default=str)
    if told not in _COUNTED:
        _COUNTED[told] = _count(text)
    _ASKED[:] = [(config, _COUNTED[told])]
    return _COUNTED[told]


def _count(config: Any) -> NetworkSize:
    from trainer.network.families import build_network

    settings, network = config.to_dict(), build_network(config, "model")
    named, head = dict(network.named_parameters()), network.get_output_embeddings()
    embeddings = {
        id(module.weight) for module in network.modules() if type(module).__name__.endswith("Embedding") and hasattr(module, "weight")
    }
    expert_names = {name for name in named if ".experts." in name}
    experts = sum(named[name].numel() for name in expert_names)
    share = _chosen_share(config.model_type, settings, named, expert_names)
    inside = {name: p for name, p in named.items() if _multiplies(name, p, name in expert_names) and id(p) not in embeddings}
    products = sum(p.numel() * (share if name in expert_names else 1.0) for name, p in inside.items())
    if head is not None and id(head.weight) in embeddings:  # tied
        products += head.weight.numel()
    total = sum(p.numel() for p in named.values())
    largest = max((p.numel() for p in named.values()), default=0)
    return NetworkSize(total, round(products), round(total - (1 - share) * experts), experts, _attention_width(network, settings), largest)


def _multiplies(name: str, parameter: Any, of_experts: bool) -> bool:
    """Matrices; of experts, whose vectors are stacked too, what is no bias."""
    return parameter.ndim >= 2 and not name.endswith("bias") and not (of_experts and parameter.ndim == 2 and name.endswith("_bias"))


def _chosen_share(model_type: str, settings: dict[str, Any], named: dict[str, Any], expert_names: set[str]) -> float:
    """Of all experts those that a token is given. UserError where the config does not say how many."""
    if not expert_names:
        return 1.0
    chosen = next((settings[key] for key in CHOSEN if isinstance(settings.get(key), int)), None)
    stacked = [named[name].shape[0] for name in expert_names if named[name].ndim >= 3]
    numbered = {name.split(".experts.", 1)[1].split(".")[0] for name in expert_names}
    total = stacked[0] if stacked else sum(part.isdecimal() for part in numbered)
    if not chosen or not total:
        raise UserError(f"model_type {model_type}: how many of its experts a token is given is not known, so its work cannot be planned")
    return min(1.0, chosen / total)


def _attention_width(network: Any, settings: dict[str, Any]) -> int:
    """Σ heads × head size over modules that compare tokens with one another (softmax attention; linear attention and state spaces do not)."""
    width = 0
    for module in network.modules():
        kind = type(module).__name__
        if (
            kind.endswith("Attention")
            and "Linear" not in kind
            and not any(type(child).__name__.endswith("Attention") for child in module.children())
        ):
            width += _width(module, settings)
    return width


def _width(module: Any, settings: dict[str, Any]) -> int:
    heads = next(
        (int(value) for key in ("num_heads", "num_attention_heads", "n_heads") if isinstance(value := getattr(module, key, None), int)), 0
    )
    heads = heads or int(settings.get("num_attention_heads") or settings.get("n_head") or 0)
    keys, values = getattr(module, "qk_head_dim", None), getattr(module, "v_head_dim", None)
    if isinstance(keys, int) and isinstance(values, int):  # latent attention compares and sums in two widths
        return heads * (keys + values) // 2
    size = next(
        (value for key in ("head_dim", "head_size", "attention_head_size") if isinstance(value := getattr(module, key, None), int)), 0
    )
    size = size or settings.get("head_dim") or int(settings.get("hidden_size") or settings.get("n_embd") or 0) // max(1, heads)
    return heads * int(size)

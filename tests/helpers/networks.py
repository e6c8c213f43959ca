"""Small networks, weights that lie in memory, and tensors compared."""

import torch


def sizes(hidden: int, inner: int, layers: int, heads: int, key_heads: int) -> dict[str, int]:
    """As configs of Llama and its kin name them."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
    }


class Held:
    """Weights in memory, as trainer.store.weights.Weights gives them."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> list[int]:
        return list(self._tensors[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def slice(self, name: str, start: int, end: int) -> torch.Tensor:
        return self._tensors[name].flatten()[start:end]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)

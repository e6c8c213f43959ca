"""Model FLOPs and utilisation (MFU). Pure."""

from typing import Any

import numpy as np

# Dense bf16 peak of one device, FLOPs/s, from the makers' data sheets (cluster/chips.py names them), half of what they give with sparsity;
# matched as a part of torch's device name.
# Longer names first: "A10" stands in "A100", "H20" in "H200".
_PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "A10G": 70e12, "A10": 125e12,
    "H20": 148e12, "B200": 2250e12, "MI300X": 1307e12, "4090": 165e12, "3090": 71e12,
}  # fmt: skip


def matmul_parameters(config: Any) -> int:
    """Weights that take part in matrix products: all but the input embedding; the output head counts, tied or not."""
    d, layers, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or d // heads
    attention = d * head * (2 * heads + 2 * kv_heads)
    wide = config.intermediate_size
    mlp = 3 * d * (sum(wide) if isinstance(wide, list) else layers * wide)  # Gemma 3n has a width for each layer
    return layers * attention + mlp + d * vocab


def row_flops(config: Any, cu_seqlens: Any, causal: bool = False) -> float:
    """FLOPs of forward and backward over one row: 6 N per token and 12 L d l² per item of l tokens.

    Attention is counted non-causal, as the published MFU figures do (PaLM, arXiv 2204.02311, appendix B); `causal`: half of it.
    0 for families whose config names no attention heads.
    """
    if not getattr(config, "num_attention_heads", None) or not getattr(config, "intermediate_size", None):
        return 0.0
    lengths = np.diff(cu_seqlens).astype(float)
    return (
        6.0 * matmul_parameters(config) * lengths.sum()
        + (6.0 if causal else 12.0) * config.num_hidden_layers * config.hidden_size * (lengths**2).sum()
    )


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOPs/s of a known GPU, else None."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)
